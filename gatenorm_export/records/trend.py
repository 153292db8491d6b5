"""Whether scores fall with depth."""

from __future__ import annotations

from gatenorm_export.records.base import Part


class DepthTrend(Part):
    """Whether scores fall with depth: the paper's first check of the Attention Suppression Hypothesis.

    A step is one from a layer to the next. ``rises`` are the layers that score higher than the layer before them, the
    inversions of a falling order; ``longest_fall`` counts the layers of the longest unbroken fall, and
    ``longest_fall_from`` is its first.
    """

    spearman_rho: float | None
    """None where it is not defined: fewer than two scores, or all of them equal."""
    falls_with_depth: bool
    sentence: str
    n_steps: int | None = None
    falling_steps: int | None = None
    rises: tuple[int, ...] = ()
    longest_fall: int | None = None
    longest_fall_from: int | None = None
    monotone: bool | None = None
    """Whether every step falls or stays level; None without a step, and in files of versions that did not look."""
