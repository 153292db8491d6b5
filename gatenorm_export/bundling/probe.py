"""A short probe of a bundled decoder: does it go on as it did when it was bundled, and is its cache what it seems?

No framework model is needed. That the surgery is right was proved against one when the graph was compared; what can go
wrong later is another runtime, another build of it, or a manifest that names the cache tensors wrongly. So a fixed
prompt is continued greedily, token by token on the cache; the same tokens fed at once must give the same logits.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from gatenorm_export.bundling.stepping import Stepper
from gatenorm_export.records import BundleGraph, BundleProbe, Decoding

PROMPT_TOKENS, ANSWER_TOKENS = 12, 8

TOLERANCE, WIDE_TOLERANCE = 1e-3, 5e-2
"""Largest difference of logits as a share of their range: fp32 sums in another order stay far below the first. Half
precision and quantised weights round ten to a hundred times as much; a cache that is mixed up is beyond the second."""

_QUANTISED = ("MatMulNBits", "GatherBlockQuantized", "QMoE")


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The greedy continuation, and what was found; ``passed`` is false where the graph contradicts itself or it."""

    answer: tuple[int, ...]
    passed: bool
    finding: str


def tolerance_of(graph: BundleGraph) -> float:
    """The share of the logits' range that two ways to compute them may differ by."""
    plain = graph.precision == "fp32" and not set(graph.contrib_operators) & set(_QUANTISED)
    return TOLERANCE if plain else WIDE_TOLERANCE


def probe_prompt(decoding: Decoding) -> tuple[int, ...]:
    """A prompt without chance: tokens spread over the vocabulary, as many as the model takes with an answer."""
    room = (decoding.max_positions or PROMPT_TOKENS + ANSWER_TOKENS) - ANSWER_TOKENS
    length = max(1, min(PROMPT_TOKENS, room))
    # A stride without a common factor with any vocabulary reaches every part of it.
    return tuple((17 + 7919 * index) % decoding.vocab_size for index in range(length))


def run_probe(
    stepper: Stepper, prompt: tuple[int, ...], tolerance: float, expected: tuple[int, ...] = ()
) -> ProbeResult:
    """Continue ``prompt``: freely, or along ``expected``, each token of which must then be the most likely one.

    Tokens whose logits are closer than the tolerance are a tie. Afterwards everything is fed at once.
    """
    stepper.begin()
    steps = [stepper.step(list(prompt))]
    answer = [expected[0] if expected else int(steps[0][-1].argmax())]
    for index in range(1, len(expected) or ANSWER_TOKENS):
        steps.append(stepper.step(answer[-1:]))
        answer.append(expected[index] if expected else int(steps[-1][-1].argmax()))
    stepped = np.concatenate(steps)
    stepper.begin()
    whole = stepper.step([*prompt, *answer[:-1]])
    # Some graphs give the logits of the last token alone.
    whole, stepped = whole[-len(stepped) :], stepped[-len(whole) :]
    if not (np.isfinite(whole).all() and np.isfinite(stepped).all()):
        return ProbeResult(tuple(answer), False, "it computes numbers that are not finite")
    limit = tolerance * float(np.ptp(stepped))
    error = float(np.abs(whole - stepped).max())
    if error > limit:
        finding = f"fed at once it computes something else than token by token: logits differ by {error:.2e}, "
        return ProbeResult(tuple(answer), False, f"{finding}tolerance {limit:.2e}")
    rows = np.stack([step[-1] for step in steps])
    margins = rows.max(axis=1) - rows[np.arange(len(rows)), answer]
    worst = int(margins.argmax())
    if margins[worst] > 2 * limit:
        finding = f"it goes on with token {int(rows[worst].argmax())} where it went on with {answer[worst]}"
        return ProbeResult(tuple(answer), False, f"{finding} when it was bundled (token {worst + 1} of the answer)")
    return ProbeResult(
        tuple(answer),
        True,
        f"{len(answer)} greedy tokens as when it was bundled; fed at once, its logits differ by {error:.1e} at most, "
        f"tolerance {limit:.1e}",
    )


def make_probe(stepper: Stepper, graph: BundleGraph, decoding: Decoding) -> tuple[BundleProbe, ProbeResult]:
    """The probe of a graph that is being bundled."""
    prompt = probe_prompt(decoding)
    result = run_probe(stepper, prompt, tolerance_of(graph))
    return BundleProbe(prompt=prompt, answer=result.answer), result
