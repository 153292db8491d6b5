"""Random residual networks full of decoys: surgery is right or refused, whatever the graph.

The reference is the same network with one gate on every attention branch, written by the generator, which knows where
the branches end; the surgery has no part in it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from network_judge import NO_SUM, READ_BY_OTHERS, as_bytes, check_all, session
from network_tape import Layer, Network, flags
from random_attention import FORMS
from random_blocks import BLOCKS
from random_decoys import MLPS
from random_networks import build, feed, run

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
# A graph takes tens of milliseconds; none of hypothesis's limits on time says anything about the surgery.
# Its explanations are left out: they trace every line, and the shrunk network says enough.
QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "phases": [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
}

_EXITS = ("matmul", "bias", "gemm", "lora")
_SCORES = st.frozensets(st.sampled_from(["scale", "mask", "cap", "sink"]))
_PLAIN_EXTRAS = ("swapped", "biases", "packed", "qk norm", "tied", "simplified", "gated", "mlp bias")
_ODD_EXTRAS = ("skip bias", "value residual", "borrowed cache", "convolution", "query residual")
_PLAIN_TAPS = ("stream", "auxiliary head", "dead")
_SHARED = (
    *("positions", "rope", "a mask per layer", "keys before values", "unnamed", "annotated", "shuffled"),
    *("long skip", "auxiliary stream", "pooling head", "softmax output"),
)


def networks(
    *, blocks: Iterable[str], mlps: Iterable[str], extras: tuple[str, ...], taps: tuple[str, ...], **rest: Any
):
    layers = st.builds(
        Layer,
        block=st.sampled_from(list(blocks)),
        attention=st.sampled_from(list(FORMS)),
        exit=st.sampled_from(_EXITS),
        mlp=st.sampled_from(list(mlps)),
        scores=_SCORES,
        extras=st.frozensets(st.sampled_from(extras), max_size=3),
        taps=st.frozensets(st.sampled_from(taps), max_size=1),
    )
    return st.builds(
        Network,
        layers=st.lists(layers, min_size=1, max_size=4).map(tuple),
        cache=st.booleans(),
        length_source=st.tuples(st.integers(0, 3), st.sampled_from(["key", "value", "present"])),
        length_form=st.sampled_from(["gather", "slice", "attributes"]),
        lengths=st.sampled_from(["constant", "tokens", "layer"]),
        extras=st.frozensets(st.sampled_from(_SHARED), max_size=4),
        seed=st.integers(0, 3),
        **rest,
    )


ANY = networks(
    blocks=BLOCKS,
    mlps=MLPS,
    extras=_PLAIN_EXTRAS + _ODD_EXTRAS,
    taps=(*_PLAIN_TAPS, "If", "Loop", *sorted(READ_BY_OTHERS)),
    mask_symbol=st.sampled_from(["p + s", "t"]),
)
PLAIN = networks(
    blocks=[block for block in BLOCKS if block not in NO_SUM],
    mlps=["plain", "none", "router", "mixture", "cosine router", "memory", "linear attention"],
    extras=_PLAIN_EXTRAS,
    taps=_PLAIN_TAPS,
)


def found_bugs(test: Any) -> Any:
    """Networks that some version of the surgery got wrong, each with what it got wrong."""
    for network in (
        # The query is added to the attention's result before the projection: taken for the residual.
        Network((Layer(extras=flags("query residual")),)),
        # A convolution of the values beside attention, and a LoRA diamond behind it: half of the branch stayed.
        Network((Layer(exit="lora", extras=flags("convolution")),), extras=flags("auxiliary stream")),
        # x - attention, and the sum after next was taken for the residual.
        Network((Layer(block="subtracted"),), extras=flags("long skip")),
        Network((Layer(block="subtracted"),), extras=flags("long skip", "pooling head")),
        # Neighbouring sums without anything between them.
        Network((Layer(mlp="none"), Layer(mlp="none")), cache=True),
        # Nobody reads it, and it reads the probabilities.
        Network((Layer(taps=flags("dead")),)),
        Network((Layer(taps=flags("dead")),), extras=flags("annotated"), cache=True),
        # A layer that cannot be matched, and the ones behind it were numbered one too low or too high.
        Network((Layer(taps=flags("branch")), Layer()), cache=True),
        Network((Layer(block="highway"), Layer()), cache=True),
        Network((Layer(), Layer(block="highway")), cache=True),
        Network((Layer(block="fused by Concat", attention="differential probabilities"), Layer())),
        Network((Layer(attention="heads in Add", taps=flags("branch")), Layer())),
        Network((Layer(block="skip post-norm", exit="bias", extras=flags("skip bias")), Layer(), Layer()), cache=True),
        Network((Layer(), Layer(block="highway"), Layer()), cache=True),
        # Layer 1 reads the keys and values of layer 0.
        Network((Layer(), Layer(extras=flags("borrowed cache"))), cache=True),
        # It reads them, and adds its query to the result: the query was taken for the residual.
        Network((Layer(), Layer(extras=flags("borrowed cache", "query residual")))),
        # The lengths that all layers share are read in layer 0: from its normed input, or from its concatenated keys.
        Network((Layer(exit="gemm"), Layer(exit="gemm")), lengths="layer"),
        Network((Layer(scores=flags("mask")),) * 2, cache=True, length_source=(0, "present")),
        # The norm of a Skip*LayerNormalization alone must be an operator that the checker knows.
        Network((Layer(block="skip post-norm", extras=flags("simplified")),)),
        Network((Layer(block="parallel", mlp="cross-attention"), Layer()), cache=True),
        Network((Layer(attention="com.microsoft.Attention"), Layer()), cache=True),
    ):
        test = example(network=network)(test)
    return test


@found_bugs
@settings(max_examples=120, **QUIET)
@given(network=ANY)
def test_surgery_is_right_or_refused(network: Network) -> None:
    check_all(network)


@settings(max_examples=70, **QUIET)
@given(network=PLAIN)
def test_plain_networks_are_never_refused(network: Network) -> None:
    check_all(network, strict=True)


def test_a_flat_block_behind_a_layer_without_mlp_is_never_refused() -> None:
    layers = (Layer(mlp="none"), Layer(attention="multi-head"), Layer(block="flat"))
    check_all(Network(layers, lengths="layer"), strict=True)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("cache", [False, True], ids=["no cache", "cache"])
def test_every_form_of_attention_is_found(attention: str, cache: bool) -> None:
    check_all(Network((Layer(attention=attention, scores=flags("scale", "mask")), Layer()), cache=cache), strict=True)


@pytest.mark.parametrize("block", sorted(set(BLOCKS) - NO_SUM))
def test_every_block_is_found(block: str) -> None:
    check_all(Network((Layer(block=block), Layer(block=block)), cache=True), strict=True)


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_the_reference_tells_a_wrong_layer_from_the_right_one(block: str) -> None:
    """No tolerance that a wrong surgery could pass: every gate moves the logits by far more than the tolerance."""
    network = Network((Layer(block=block),) * 3)
    reference, feeds = session(as_bytes(build(network, gated=True).model)), feed(build(network).model, network)
    answers = [
        run(reference, feeds | {"gates": np.array(gates, np.float32)})["logits"]
        for gates in ([1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0])
    ]
    for one, other in itertools.combinations(answers, 2):
        assert np.abs(one - other).max() > 0.01 * np.abs(one).max()
