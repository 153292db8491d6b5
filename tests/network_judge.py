"""What every removal from a random network must satisfy, judged against the same network with gated branches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from network_tape import Layer, Network, flags
from random_networks import build, feed, run

from graph_passes import SurgeryRefused, find_attention, remove_attention

# Removing from these graphs may be refused: the attention is wanted by somebody else, or there is no sum to take it
# out of. It must never go wrong.
READ_BY_OTHERS = flags("probabilities", "branch", "cache statistics")
NO_SUM = flags("fused by Concat", "highway", "subtracted")


class Judge:
    """One network, its reference, and what every removal from it must satisfy."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.layers = tuple(range(len(network.layers)))
        built = build(network)
        self.owner = built.owner
        proto = ir.serde.serialize_model(built.model)
        if "annotated" in network.extras:
            proto = onnx.shape_inference.infer_shapes(proto)
        self._proto = proto
        self._data = as_bytes(self.model())
        self._inputs, self._outputs = signature(built.model)
        self._feeds = feed(built.model, network)
        self._reference = session(as_bytes(build(network, gated=True).model))
        self._dead = dead_values(self.model())

    def model(self) -> ir.Model:
        """A fresh copy, as it comes out of a file."""
        return ir.from_proto(self._proto)

    def found(self) -> tuple[int, ...]:
        """The layers that the analysis finds; it must leave the model alone and take no decoy for a layer."""
        model = self.model()
        sites = find_attention(model).sites
        assert as_bytes(model) == self._data, "the analysis changed the model"
        layers = [site.layer for site in sites if site.kind == "self"]
        assert layers == sorted(set(layers)), f"layer numbers {layers} are out of order"
        assert set(layers) <= set(self.layers), f"found layers {layers}, the network has {self.layers}"
        crossing = [layer for layer in self.layers if self.network.layers[layer].mlp == "cross-attention"]
        crosses = [site for site in sites if site.kind == "cross"]
        assert len(crosses) <= len(crossing), f"found {len(crosses)} cross-attentions, the network has {len(crossing)}"
        return tuple(layers)

    def remove(self, *steps: tuple[int, ...]) -> str | None:
        """Remove layers step by step and compare with the gated reference after each.

        Returns:
            The reason where a step was refused, else None.
        """
        model, before = self.model(), self._data
        removed: set[int] = set()
        for layers in steps:
            refusal = refused(model, layers)
            if refusal is not None:
                assert as_bytes(model) == before, f"refused, but the model has changed: {refusal}"
                assert "layer" in refusal, f"the refusal names no layer: {refusal}"
                return refusal
            removed |= set(layers)
            before = as_bytes(model)
            self._compare(model, before, removed)
        remove_attention(model, [layer for step in steps for layer in step], kv_names="keep")
        assert as_bytes(model) == before, "removing twice is not removing once"
        return None

    def remove_and_renumber(self, removed: tuple[int, ...]) -> None:
        """With dense names the caches run 0..n-1, and the graph is the same otherwise."""
        keep, dense = self.model(), self.model()
        remove_attention(keep, removed, kv_names="keep")
        refusal = refused(dense, removed, kv_names="dense")
        if refusal is not None:
            assert as_bytes(dense) == self._data, f"refused, but the model has changed: {refusal}"
            parts = {len(self._cache_of(layer)) for layer in self.layers} - {0}
            assert len(parts) > 1, f"dense names were refused: {refusal}"
            return
        for old, new in zip(signature(keep), signature(dense), strict=True):
            assert len(old) == len(new)
            numbers = {int(name.split("_")[1]) for name in old if name.startswith(("past_", "present_"))}
            rank = {number: index for index, number in enumerate(sorted(numbers))}
            if not all(self._cache_of(layer) for layer in self.layers):
                # Whether layers without a cache of their own count is nobody's business here.
                continue
            for was, now in zip(old, new, strict=True):
                stem, _, rest = was.partition("_")
                number, _, part = rest.partition("_")
                expected = f"{stem}_{rank[int(number)]}_{part}" if stem in {"past", "present"} else was
                assert now == expected, f"{was} became {now}, not {expected}"
        self._compare(
            dense, as_bytes(dense), set(removed), names=dict(zip(*map(all_names, (dense, keep)), strict=True))
        )

    def _compare(self, model: ir.Model, data: bytes, removed: set[int], names: dict[str, str] | None = None) -> None:
        """``names`` are the original names of inputs and outputs that have others now."""
        original = names or {name: name for name in all_names(model)}
        onnx.checker.check_model(data)
        self._check_signature([[original[name] for name in side] for side in signature(model)], removed)
        left = dead_values(model) - self._dead
        assert not left, f"left behind without a reader: {sorted(left)}"
        gates = np.array([layer not in removed for layer in self.layers], np.float32)
        expected = run(self._reference, self._feeds | {"gates": gates})
        feeds = {name: self._feeds[original[name]] for name in signature(model)[0]}
        for name, array in run(session(data), feeds).items():
            wanted = expected[original[name]]
            assert array.shape == wanted.shape, name
            scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
            error = float(np.abs(array - wanted).max(initial=0.0)) / scale
            assert error <= 1e-4, f"{name} without layers {sorted(removed)} is off by {error:.1e} of its range"

    def _check_signature(self, sides: list[list[str]], removed: set[int]) -> None:
        """The cache tensors of removed layers are gone, everything else is there and in its old order."""
        gone, undecided = self._caches(removed)
        for before, after in zip((self._inputs, self._outputs), sides, strict=True):
            allowed = [name for name in before if name.replace("present", "past") not in gone]
            surely = [name for name in allowed if name.replace("present", "past") not in undecided]
            assert set(after) <= set(allowed), f"left of removed layers: {sorted(set(after) - set(allowed))}"
            assert set(surely) <= set(after), f"missing: {sorted(set(surely) - set(after))}"
            assert after == [name for name in before if name in after], f"reordered: {after}, before {before}"

    def _cache_of(self, layer: int) -> set[str]:
        return {name for name in self._inputs if name.startswith(f"past_{layer}_")}

    def _caches(self, removed: set[int]) -> tuple[set[str], set[str]]:
        """Past tensors that must go with the removed layers, and those that may stay since others read them."""
        gone: set[str] = set()
        undecided: set[str] = set()
        for layer in removed:
            users = {user for user, owner in self.owner.items() if owner == layer}
            if users <= removed:
                read = any(READ_BY_OTHERS & self.network.layers[user].taps for user in users)
                (undecided if read else gone).update(self._cache_of(layer))
        return gone, undecided

    def may_be_refused(self, removed: set[int]) -> bool:
        """Whether somebody else needs what is to be removed, or the graph does not tell what to do instead."""
        borrowed = any(owner in removed and user not in removed for user, owner in self.owner.items())
        no_mask = self.network.cache and self.network.mask_symbol != "p + s"
        return borrowed or no_mask or any(_exotic(self.network.layers[layer]) for layer in removed)


def _exotic(spec: Layer) -> bool:
    two_biases = "skip bias" in spec.extras and spec.exit != "matmul"
    return bool(
        spec.block in NO_SUM
        or spec.taps & READ_BY_OTHERS
        or "query residual" in spec.extras
        or (spec.block.startswith("skip") and two_biases)
    )


def refused(model: ir.Model, layers: Iterable[int], kv_names: Literal["keep", "dense"] = "keep") -> str | None:
    """Remove layers; the reason where that is refused."""
    try:
        remove_attention(model, layers, kv_names=kv_names)
    except SurgeryRefused as refusal:
        return str(refusal)
    return None


def as_bytes(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def signature(model: ir.Model) -> tuple[list[str], list[str]]:
    return [value.name or "" for value in model.graph.inputs], [value.name or "" for value in model.graph.outputs]


def all_names(model: ir.Model) -> list[str]:
    inputs, outputs = signature(model)
    return inputs + outputs


def session(data: bytes) -> onnxruntime.InferenceSession:
    """Without optimizations, which could hide what the surgery left."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options)


def dead_values(model: ir.Model) -> set[str]:
    """Results and weights that nothing reads."""
    graphs = [model.graph, *model.graph.subgraphs()]
    read = {value for graph in graphs for node in graph for value in node.inputs}
    read |= {value for graph in graphs for value in graph.outputs}
    unread = {node.outputs[0].name or "" for node in model.graph if not read.intersection(node.outputs)}
    return unread | {name for name, value in model.graph.initializers.items() if value not in read}


def check_all(network: Network, *, strict: bool = False) -> None:
    """Every single layer, all layers together, and one after the other from the last."""
    judge = Judge(network)
    found = judge.found()
    for removed in dict.fromkeys([*((layer,) for layer in judge.layers), judge.layers]):
        reason = judge.remove(removed)
        if reason is None:
            assert set(removed) <= set(found), f"{removed} were removed, only {found} were found"
        else:
            allowed = not strict and judge.may_be_refused(set(removed))
            assert allowed, f"removing {removed} was refused: {reason}"
        if reason is None and removed == (0,):
            judge.remove_and_renumber(removed)
    judge.remove(*((layer,) for layer in reversed(judge.layers)))
