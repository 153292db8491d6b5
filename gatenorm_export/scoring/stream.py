"""Scores of a stack of layers: one layer in memory and the next one being read; sketches first, exact near a cut."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from gatenorm_export.progress import Task
from gatenorm_export.scoring.certify import Certainty, Interval, certainty, most_urgent, undecided
from gatenorm_export.scoring.devices import Device, full_float32, pick_device
from gatenorm_export.scoring.gate_norm import Variant
from gatenorm_export.scoring.looking import EXACT, SKETCHES, Found, Looker
from gatenorm_export.scoring.pairing import StreamedLayer, in_pairs


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


BOUND = (
    "sketches of random signs; the exact score lies in the interval but for e^-16 on either side (Laurent and Massart "
    "2000, lemma 1), at the variance that the sketch measures of itself"
)


def score_layers(
    layers: Sequence[StreamedLayer],
    *,
    head_dim: int,
    cuts: Sequence[int] = (),
    protect: Collection[int] = (),
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
    exact. Layers to ``protect`` are scored and take no part in a cut. The same ``seed`` gives the same result.
    ``progress`` advances once a layer.

    Raises:
        NotFinite: a layer's score is not finite; the caller knows the names of its tensors.
        ValueError: shapes that do not fit; a ``device`` that is none of auto, cpu, cuda and cuda:N.
        MissingPartError: CUDA is asked for and there is no torch, or no such GPU.
    """
    chosen = pick_device(device)
    wanted = sorted(set(cuts))
    sketched = bool(wanted) and not exact and variant == "all-heads" and chosen is None
    steps = (*SKETCHES, *EXACT) if sketched else EXACT
    looker = Looker(steps, head_dim=head_dim, variant=variant, seed=seed, device=chosen)
    found: dict[int, Found] = {}
    looks: dict[str, int] = {}
    pending = list(layers)
    with full_float32(chosen):
        while pending:
            first = not found
            alone = any(one.layer in found and steps[found[one.layer].step + 1].exact for one in pending)
            looked = in_pairs(
                pending, lambda one, reading: looker.look(one, found.get(one.layer), reading), alone=alone
            )
            for layer, result in looked:
                found[layer] = found[layer].sharpened(result) if layer in found else result
                looks[result.name] = looks.get(result.name, 0) + 1
                if first and progress is not None:
                    progress.advance()
            standing = _intervals(found, protect)
            _forget_sketches(found, standing, wanted)
            urgent = {layer for cut in wanted for layer in most_urgent(standing, cut)}
            urgent |= _boundless(found)
            pending = [one for one in layers if one.layer in urgent]
    standing = _intervals(found, protect)
    certainties = tuple(certainty(standing, cut) for cut in wanted)
    return _scoring([one.layer for one in layers], found, certainties, looks, chosen)


def _forget_sketches(found: dict[int, Found], standing: Sequence[Interval], cuts: Sequence[int]) -> None:
    """Of a layer that is decided at every cut no sketch is made sharper: a megabyte each at 512 columns."""
    left = {layer for cut in cuts for layer in undecided(standing, cut)} | _boundless(found)
    for layer in found.keys() - left:
        found[layer] = replace(found[layer], sketches=())


def _boundless(found: dict[int, Found]) -> set[int]:
    """Layers whose score could be anything, which says nothing, also of one that is decided, or takes no part."""
    return {layer for layer, one in found.items() if math.isinf(one.high)}


def _intervals(found: dict[int, Found], protect: Collection[int]) -> list[Interval]:
    return [Interval(layer, one.low, one.high, one.final) for layer, one in found.items() if layer not in protect]


def _scoring(
    order: list[int],
    found: dict[int, Found],
    certainties: tuple[Certainty, ...],
    looks: dict[str, int],
    device: Device | None,
) -> Scoring:
    exact = frozenset(layer for layer, one in found.items() if one.exact)
    used = [found[layer] for layer in order]
    scores = tuple(
        Scored(layer, one.score, one.score, one.score) if one.exact else Scored(layer, one.score, one.low, one.high)
        for layer, one in zip(order, used, strict=True)
    )
    rounding = max(((one.high - one.low) / 2 / one.score for one in used if one.exact and one.score > 0), default=0.0)
    names = ", ".join(dict.fromkeys(one.arithmetic for one in used if one.exact))
    arithmetic = [f"{names}; exact scores are off by less than {rounding:.1e} of themselves"] if names else []
    sketches = dict.fromkeys(one.arithmetic for one in used if not one.exact)
    return Scoring(
        layers=scores,
        certainties=certainties,
        arithmetic="; ".join((*sketches, *arithmetic)),
        bound=None if len(exact) == len(used) else BOUND,
        device="cpu" if device is None else device.words,
        looks=looks,
    )
