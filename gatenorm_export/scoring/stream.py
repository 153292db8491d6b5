"""Scores of a stack of layers, one layer in memory and the next one being read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gatenorm_export.progress import Task
from gatenorm_export.scoring.certify import Certainty, Interval, certainty
from gatenorm_export.scoring.gate_norm import Exact, Variant, exact_score


class StreamedLayer(Protocol):
    """One layer of a checkpoint."""

    @property
    def layer(self) -> int:
        """Its number."""

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Query and key weights. Called from another thread, one call at a time; again when the layer is looked at
        more closely."""


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
    None where every score is exact; ``reread`` counts the layers that were read again."""

    layers: tuple[Scored, ...]
    certainties: tuple[Certainty, ...]
    arithmetic: str
    bound: str | None
    device: str
    reread: int


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
    """Score layers. Without ``cuts``, or with ``exact``, every score is exact.

    Raises:
        NotFinite: a layer's score is not finite; the caller knows its tensors' names.
        ValueError: shapes that do not fit.
    """
    found: dict[int, Exact] = {}
    for layer, query, key in read_ahead(layers):
        found[layer] = exact_score(query, key, head_dim=head_dim, variant=variant)
        if not np.isfinite(found[layer].score):
            raise NotFinite(layer)
        if progress is not None:
            progress.advance()
    intervals = [
        Interval(layer, one.score * (1 - one.rounding), one.score * (1 + one.rounding)) for layer, one in found.items()
    ]
    exacts = frozenset(found)
    return Scoring(
        layers=tuple(Scored(layer, one.score, one.score, one.score) for layer, one in found.items()),
        certainties=tuple(certainty(intervals, n, exact=exacts) for n in sorted(set(cuts))),
        arithmetic=", ".join(dict.fromkeys(one.arithmetic for one in found.values())),
        bound=None,
        device="cpu",
        reread=0,
    )


def read_ahead(layers: Sequence[StreamedLayer]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each layer with its weights, while a thread reads the next one, and no more than that."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        ahead: Future[tuple[np.ndarray, np.ndarray]] | None = None
        for index, one in enumerate(layers):
            query, key = (ahead or reader.submit(one.load)).result()
            ahead = reader.submit(layers[index + 1].load) if index + 1 < len(layers) else None
            yield one.layer, query, key
            # Let go before the next one arrives: two layers are held, never three.
            del query, key
