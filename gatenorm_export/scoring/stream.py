"""Scores of a stack of layers: one layer in memory and the next one being read; sketches first, exact near a cut."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatenorm_export.progress import Task
from gatenorm_export.scoring.certify import Certainty, Interval, certainty, most_urgent
from gatenorm_export.scoring.devices import Device, device_score, full_float32, pick_device
from gatenorm_export.scoring.gate_norm import (
    Variant,
    check_shapes,
    exact_flops,
    exact_score,
    in_float32_range,
    is_large,
)
from gatenorm_export.scoring.pairing import StreamedLayer, in_pairs
from gatenorm_export.scoring.rows import Matrix
from gatenorm_export.scoring.sketch import SIGNS_PER_ROW, sketch


class NotFinite(ValueError):
    """A layer's weights hold NaN or infinity, or their product leaves float64."""

    def __init__(self, layer: int) -> None:
        super().__init__(f"the score of layer {layer} is not finite")
        self.layer = layer


@dataclass(frozen=True)
class Scored:
    """A layer's score. ``low == high == score`` where it is exact (up to the rounding that the arithmetic names)."""

    layer: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Scoring:
    """Scores of a stack of layers, in the order given. ``bound`` says what the intervals of sketched scores stand on,
    None where every score is exact; ``looks`` counts the layers that each step looked at."""

    layers: tuple[Scored, ...]
    certainties: tuple[Certainty, ...]
    arithmetic: str
    bound: str | None
    device: str
    looks: dict[str, int]


@dataclass(frozen=True)
class _Step:
    """One way to score a layer. ``columns`` 0 is exact; ``leads`` are kept for the next step's ``rank``."""

    name: str
    columns: int = 0
    rank: int = 0
    leads: int = 0
    float64: bool = False

    @property
    def alone(self) -> bool:
        """Whether one layer at a time is as fast as two, and takes less memory: what large products are made of."""
        return not self.columns


# At the width of a 13B model, half widths of 9, 0.9 and 0.5 hundredths at 0.06, 0.15 and 0.22 seconds of one core,
# where exact takes 2; on spectra as steep as those of trained weights. A layer skips the sketches that would cost it
# half of being exact.
_EXACT = (_Step("exact"), _Step("exact in float64", float64=True))
_STEPS = (
    _Step("sketch", columns=320, leads=32),
    _Step("refined sketch", columns=512, rank=32, leads=64),
    _Step("finest sketch", columns=768, rank=64),
    *_EXACT,
)

BOUND = (
    "sketches of random signs; the exact score lies in the interval but for e^-16 on either side (Laurent and Massart "
    "2000, lemma 1), at the variance that the sketch measures of itself"
)


@dataclass(frozen=True)
class _Found:
    """What is known of a layer. An exact score's interval is its rounding; ``final`` is as sharp as it gets."""

    score: float
    low: float
    high: float
    name: str
    step: int
    exact: bool
    final: bool
    leads: np.ndarray | None = None


def score_layers(
    layers: Sequence[StreamedLayer],
    *,
    head_dim: int,
    cuts: Sequence[int] = (),
    exact: bool = False,
    variant: Variant = "all-heads",
    device: str = "auto",
    seed: int = 0,
    progress: Task | None = None,
) -> Scoring:
    """Score layers.

    With ``cuts`` (numbers of layers), large layers are sketched, and only those whose interval leaves open on which
    side of a cut they are get sharper sketches and then the exact formula, until the lowest are certain at every cut,
    or what is left is equal up to rounding. Without ``cuts``, with ``exact``, per head and on a GPU, every score is
    exact. The same ``seed`` gives the same result. ``progress`` advances once a layer.

    Raises:
        NotFinite: a layer's score is not finite; the caller knows the names of its tensors.
        ValueError: shapes that do not fit; a ``device`` that is none of auto, cpu, cuda and cuda:N.
        MissingPartError: CUDA is asked for and there is no torch, or no such GPU.
    """
    chosen = pick_device(device)
    wanted = sorted(set(cuts))
    sketched = bool(wanted) and not exact and variant == "all-heads" and chosen is None
    steps = _STEPS if sketched else _EXACT
    found: dict[int, _Found] = {}
    looks: dict[str, int] = {}

    # What overflows is noticed by its score.
    @np.errstate(over="ignore", invalid="ignore", under="ignore")
    def look(one: StreamedLayer, reading: threading.Lock) -> _Found:
        before = found.get(one.layer)
        start, hint = (before.step + 1, before.leads) if before else (0, None)
        rows = None
        if steps[start].columns and not steps[start].rank:
            with reading:
                rows = one.rows()
        if rows is not None:
            guess = _sketched(one.layer, *rows, steps, start, head_dim=head_dim, seed=seed)
            for part in rows:
                part.release()
            if guess is not None:
                return guess
        with reading:
            query, key = one.load()
        return _look(
            one.layer, query, key, steps, start, hint, head_dim=head_dim, variant=variant, seed=seed, device=chosen
        )

    pending = list(layers)
    with full_float32(chosen):
        while pending:
            first = not found
            alone = any(one.layer in found and steps[found[one.layer].step + 1].alone for one in pending)
            for layer, result in in_pairs(pending, look, alone=alone):
                found[layer] = _sharper(found[layer], result) if layer in found else result
                looks[result.name] = looks.get(result.name, 0) + 1
                if first and progress is not None:
                    progress.advance()
            urgent = {layer for cut in wanted for layer in most_urgent(_intervals(found), cut)}
            pending = [one for one in layers if one.layer in urgent]
    return _scoring([one.layer for one in layers], found, wanted, looks, chosen)


def _sketched(
    layer: int,
    query: Matrix,
    key: Matrix,
    steps: Sequence[_Step],
    number: int,
    hint: np.ndarray | None = None,
    *,
    head_dim: int,
    seed: int,
) -> _Found | None:
    """Take a sketch step, or None where the layer is small for it or its figures leave the range of float32."""
    check_shapes(query, key, head_dim)
    step, (rows, width) = steps[number], key.shape
    if not is_large(query, key) or _sketch_flops(step, rows, width) * 2 > exact_flops(rows, width):
        return None
    rng = np.random.default_rng((seed, number, layer))
    guess = sketch(
        query, key, head_dim=head_dim, columns=step.columns, rng=rng, rank=step.rank, hint=hint, leads=step.leads
    )
    if not in_float32_range(guess.score, width):
        return None
    return _Found(guess.score, guess.low, guess.high, step.name, number, exact=False, final=False, leads=guess.leads)


def _look(
    layer: int,
    query: np.ndarray,
    key: np.ndarray,
    steps: Sequence[_Step],
    start: int,
    hint: np.ndarray | None,
    *,
    head_dim: int,
    variant: Variant,
    seed: int,
    device: Device | None,
) -> _Found:
    """Take the first step from ``start`` on that makes sense for the layer."""
    number = start
    while steps[number].columns:
        guess = _sketched(layer, query, key, steps, number, hint, head_dim=head_dim, seed=seed)
        if guess is not None:
            return guess
        number += 1
    check_shapes(query, key, head_dim)
    if device is not None and not steps[number].float64:
        one = device_score(device, query, key, head_dim=head_dim, variant=variant)
    else:
        one = exact_score(query, key, head_dim=head_dim, variant=variant, float64=steps[number].float64)
    if not math.isfinite(one.score):
        raise NotFinite(layer)
    low, high = one.score * (1 - one.rounding), one.score * (1 + one.rounding)
    return _Found(one.score, low, high, one.arithmetic, number, exact=True, final=one.arithmetic == "float64")


def _sketch_flops(step: _Step, rows: int, width: int) -> float:
    passes = 2 * SIGNS_PER_ROW + 3 * step.rank
    return 2.0 * rows * (width * passes + step.columns**2)


def _sharper(before: _Found, after: _Found) -> _Found:
    """Both intervals hold the score, so what they share does."""
    if after.exact:
        return after
    low, high = max(before.low, after.low), min(before.high, after.high)
    return replace(after, low=low, high=high, score=min(max(after.score, low), high))


def _intervals(found: dict[int, _Found]) -> list[Interval]:
    return [Interval(layer, one.low, one.high, one.final) for layer, one in found.items()]


def _scoring(
    order: list[int], found: dict[int, _Found], cuts: list[int], looks: dict[str, int], device: Device | None
) -> Scoring:
    exact = frozenset(layer for layer, one in found.items() if one.exact)
    used = [found[layer] for layer in order]
    scores = tuple(
        Scored(layer, one.score, one.score, one.score) if one.exact else Scored(layer, one.score, one.low, one.high)
        for layer, one in zip(order, used, strict=True)
    )
    rounding = max(((one.high - one.low) / 2 / one.score for one in used if one.exact and one.score > 0), default=0.0)
    names = ", ".join(dict.fromkeys(one.name for one in used if one.exact))
    arithmetic = f"{names}; exact scores are off by less than {rounding:.1e} of themselves" if names else ""
    if len(exact) < len(used):
        arithmetic = "; ".join(filter(None, ("float32 sketches", arithmetic)))
    return Scoring(
        layers=scores,
        certainties=tuple(certainty(_intervals(found), cut) for cut in cuts),
        arithmetic=arithmetic,
        bound=None if len(exact) == len(used) else BOUND,
        device="cpu" if device is None else device.words,
        looks=looks,
    )
