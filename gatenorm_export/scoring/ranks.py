"""Rankings of layers compared: places, Spearman's correlation, the N lowest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def average_ranks(values: Sequence[float]) -> np.ndarray:
    """The place of each value, from 0 for the lowest, [n] float64; equal values share the mean of their places."""
    _, places, alike = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    below = np.cumsum(alike) - alike
    return np.asarray((below + (alike - 1) / 2)[places])


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rank correlation: Pearson's of the places, ties sharing theirs.

    None where it is not defined: fewer than two values, or one side that is the same everywhere.
    """
    if len(left) < 2 or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return float(np.corrcoef(average_ranks(left), average_ranks(right))[0, 1])


def two_digits(rho: float) -> str:
    """A correlation as sentences have it, without a sign before a zero."""
    return f"{round(rho, 2) + 0.0:.2f}"


def removal_order(values: Mapping[int, float]) -> tuple[int, ...]:
    """Layers in the order in which they go: the lowest value first; of equal values the deeper layer."""
    return tuple(sorted(values, key=lambda layer: (values[layer], -layer)))


def lowest(values: Mapping[int, float], n: int) -> tuple[int, ...]:
    """The ``n`` layers that go first, sorted by number."""
    return tuple(sorted(removal_order(values)[:n]))
