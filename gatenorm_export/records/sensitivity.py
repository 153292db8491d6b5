"""What folding the norm weights into the query and key weights does to the ranking."""

from __future__ import annotations

from gatenorm_export.records.base import Part


class FoldedScore(Part):
    """The score of one attention sublayer with its norm weight folded in."""

    layer: int
    score: float
    tower: str = ""


class RankingShift(Part):
    """How far a ranking moves. A place is a layer's position in the order of removal.

    ``moved`` are the layers with another place; ``max_move`` is the largest number of places, and ``max_move_layer``
    who made it. ``plain`` and ``folded`` are the ``n`` layers that would go first, before and after; ``overlap`` counts
    those in both.
    """

    tower: str = ""
    n_layers: int
    spearman_rho: float | None
    moved: tuple[int, ...]
    max_move: int
    max_move_layer: int | None
    n: int
    plain: tuple[int, ...]
    folded: tuple[int, ...]
    overlap: int
    sentence: str


class FoldedNorms(Part):
    """Scores with folded norm weights, and for each tower how far that moves its ranking."""

    layers: tuple[FoldedScore, ...]
    shifts: tuple[RankingShift, ...]
