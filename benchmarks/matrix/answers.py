"""What a graph answered, and how far two answers to the same script are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Starts the name of a cache tensor among the answers, where it is compared itself.
CACHE_ANSWER = "cache of layer "


@dataclass(frozen=True)
class Answer:
    """What one call returned: arrays by name, and which positions [batch, new] hold real tokens."""

    arrays: dict[str, Array]
    valid: NDArray[np.bool_] | None


def worst_error(found: list[Answer], expected: list[Answer]) -> float:
    """The largest difference at real tokens over the whole script, over the range of the expected answer."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        for name, array in theirs.arrays.items():
            if name.startswith(CACHE_ANSWER) and name not in ours.arrays:
                # A removed layer has no cache; whether it is the right layer, the judge asks for itself.
                continue
            if name not in ours.arrays or ours.arrays[name].shape != array.shape:
                return float("inf")
            want, have = (_real(x, theirs.valid).astype(np.float64) for x in (array, ours.arrays[name]))
            difference = float(np.max(np.abs(want - have)) / max(float(np.ptp(want)), 1e-9))
            worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst


def _real(array: Array, valid: NDArray[np.bool_] | None) -> Array:
    if valid is None or array.ndim < 3 or array.shape[:2] != valid.shape:
        return array
    return np.asarray(array[valid])
