"""Whether scores fall with depth, and how far they are from falling at every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gatenorm_export.records.trend import DepthTrend
from gatenorm_export.scoring.ranks import spearman, two_digits

FALLING_RHO = -0.5
"""Spearman correlation of score and depth from which on scores are said to fall: half of a perfect order."""


def depth_trend(scores: Sequence[float]) -> DepthTrend:
    """How scores change with depth: Spearman's rank correlation of score and layer number, and every step.

    ``scores`` are of one tower, from its first layer to its last. Whether they fall is judged by the correlation,
    which one odd layer cannot turn; the steps say where the order breaks.
    """
    steps = np.diff(np.asarray(scores, np.float64))
    rises = tuple(int(place) + 1 for place in np.flatnonzero(steps > 0))
    start, length = longest_fall(scores)
    falling = int((steps < 0).sum())
    rho = spearman(scores, range(len(scores)))
    falls = rho is not None and rho <= FALLING_RHO
    return DepthTrend(
        spearman_rho=rho,
        falls_with_depth=falls,
        sentence=_sentence(rho, falls, falling, len(steps), rises),
        n_steps=len(steps),
        falling_steps=falling,
        rises=rises,
        longest_fall=length,
        longest_fall_from=start,
        monotone=not rises if len(steps) else None,
    )


def longest_fall(scores: Sequence[float]) -> tuple[int | None, int]:
    """The place of the first layer of the longest unbroken fall and its number of layers; of equally long ones the
    deepest, where the method looks for muted layers. None and 0 where no step falls."""
    best, best_length, start = None, 0, 0
    for place in range(1, len(scores) + 1):
        if place == len(scores) or not scores[place] < scores[place - 1]:
            length = place - start
            if length > 1 and length >= best_length:
                best, best_length = start, length
            start = place
    return best, best_length


def nearest_fall(scores: Sequence[float]) -> tuple[float, ...]:
    """The falling curve nearest to ``scores`` in the least-squares sense: isotonic regression by pooling neighbours.

    Equal to the scores exactly where they never rise.
    """
    pools: list[list[float]] = []
    for score in scores:
        pools.append([float(score), 1.0])
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            value, weight = pools.pop()
            before = pools[-1]
            before[0] = (before[0] * before[1] + value * weight) / (before[1] + weight)
            before[1] += weight
    return tuple(value for value, weight in pools for _ in range(int(weight)))


def _sentence(rho: float | None, falls: bool, falling: int, n_steps: int, rises: tuple[int, ...]) -> str:
    if rho is None:
        return "Too few different scores for a trend."
    expected = "as the method expects of late layers that mute their attention."
    if falls and not rises:
        how = "fall with depth at every step" if falling == n_steps else "never rise with depth"
        return f"Scores {how}, {expected}"
    figures = f"Spearman {two_digits(rho)}, {falling} of {n_steps} steps fall"
    if falls:
        return f"Scores fall with depth ({figures}), {expected}"
    return f"Scores do not fall with depth ({figures}): be wary, the method expects late layers to be muted."
