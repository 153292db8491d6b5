"""Estimates of a large layer's score from seeded random projections, with intervals that hold the exact score.

The gate matrix M = A^T B (A the query weights, summed over each group, B the key weights) is never formed. Both sides
are projected to ``columns`` dimensions, M' = (A F)^T (B G), and ||M'||_F^2 estimates ||M||_F^2 without bias: F and G
are block diagonal with the same dense random signs in each block, so that projecting costs little more than reading.

*Interval.* With the other side held, the estimate is a quadratic form z^T S z in random signs, plus what does not vary:
S is the sum of the diagonal blocks of M^T M (then of M G G^T M^T), without its diagonal. Its variance is 2 / k times
||S||_F^2, where k is the number of signs in a row. The sketch measures that: inner products (z^T S z')^2 of different
columns have ||S||_F^2 as their mean, and overstate it by the noise of the other side. The half width is that of lemma 1
of Laurent and Massart (Annals of Statistics 28, 2000) for Gaussian forms of that variance at e^-t on either side,
t = 16, relative to the estimate: the interval runs from X / (1 + w) to X / (1 - w), so that an estimate that is too
small comes with too large a width. This is conservative, not a theorem: signs vary less than Gaussians, but the
variance is measured. Where one direction holds all of S it is measured badly; then w passes 1, and the upper end is
infinite. In the tests, w is six and more standard deviations for every spectrum tried. Sketches of several seeds are
averaged.

*Deflation.* Real gate matrices have a few directions that hold most of the norm and nearly all of the variance. A
sketch is sharpened by finding such directions L, taking ||L^T M||_F^2 exactly, and estimating only the rest,
||(I - L L^T) M||_F^2, from signs that know nothing of L: the idea of Hutch++ (Meyer, Musco, Musco and Woodruff, SOSA
2021) for a Frobenius norm. L are the strongest directions of M times twice as many random vectors (Halko, Martinsson
and Tropp, SIAM Review 53, 2011), which are drawn by themselves: so what was projected before is used again, less what
lies along L, and the weights are not projected a second time. The interval holds for any L, good or bad.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatenorm_export.scoring.bfloat16_products import BFLOAT16
from gatenorm_export.scoring.factors import Factor, cut_to_bfloat16, factor, inner_products, squared_norm
from gatenorm_export.scoring.signs import SIGNS_PER_ROW, BlockSigns, block_signs

FAILURE_EXPONENT = 16.0
"""t: an interval fails with probability e^-t, one in nine million, on either side, as far as its variance is known."""

# What float32 rounds off a projection of random signs, relative; measured below 1e-6 at d = 8192.
_ROUNDING = 1e-5
# Of a number that is kept in two pieces of bfloat16.
_ROUNDED_OFF = 2.0**-17

# Random vectors for each direction that is kept. One less, and intervals are a fifth wider for the same time.
_PROBES_PER_DIRECTION = 2

# Directions that hold less than this of the strongest one's norm are rounding, or others again.
_INDEPENDENT = 1e-3

# A form of rank one in one block loses a factor of 30 on either side at e^-20: the lower tail of chi squared of 16.
_WORST_LOSS = 1000.0


@dataclass(frozen=True)
class Sketch:
    """M' = (A F)^T (B G) / SIGNS_PER_ROW of a layer, about [columns, columns] in float32, how far off its norm is by
    rounding, and what its signs were drawn from."""

    small: np.ndarray
    rounding: float
    columns: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Estimate:
    """An estimate of ||M||_F and the interval that holds it; ``high`` may be infinite."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Layer:
    """The factors of a gate matrix: query weights [n_heads * head_dim, d_model] that are to be summed over the groups,
    key weights [n_kv_heads * head_dim, d_model]."""

    a: Factor
    b: Factor
    width: int

    @classmethod
    def of(cls, query: np.ndarray, key: np.ndarray, head_dim: int) -> Layer:
        """From weights as they are stored."""
        rows, width = key.shape
        return cls(factor(query, rows, head_dim), factor(key, rows, head_dim), width)


def sketched(layer: Layer, *, columns: int, seed: tuple[int, ...]) -> Sketch:
    """Go through the weights of one layer once, all heads together, and keep ``columns`` dimensions on either side."""
    left, right = block_signs(layer.width, columns, seed)
    key, query = layer.b.project(right), layer.a.project(left)
    small, rounding = inner_products(query, key, layer.a.roundings + layer.b.roundings)
    return Sketch(small / SIGNS_PER_ROW, rounding / SIGNS_PER_ROW, columns, seed)


def estimate(layer: Layer, sketches: Sequence[Sketch], *, rank: int = 0) -> Estimate:
    """The score of the layer that was sketched, once or with several seeds. Up to ``rank`` directions are taken
    exactly, which goes through the weights twice more. Weights with NaN or infinity give a score that is not finite."""
    if not rank:
        return _interval_of(layer.width, sketches, 0.0)
    directions, unit, squares = _directions(layer, rank, (*sketches[-1].seed, rank))
    between = layer.a.times(directions)
    image = layer.b.transposed_times(between) @ unit
    along = directions.astype(np.float32) @ unit
    rests = [replace(one, small=one.small - _within(layer.width, one, along, image)) for one in sketches]
    # What is rounded off numbers one by one adds up like noise, whatever the numbers themselves do.
    off = _ROUNDED_OFF * math.sqrt(float(squares @ np.square(between, dtype=np.float64).sum(axis=1)))
    return _interval_of(layer.width, rests, float(np.vdot(image, image)), off)


@functools.lru_cache(maxsize=8)
def _probes(width: int, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """Random vectors [width, count] in bfloat16. Layers of a stack may share them, as they do their signs."""
    return cut_to_bfloat16(np.random.default_rng(seed).standard_normal((width, count), dtype=np.float32))


def _directions(layer: Layer, rank: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L [width, n] in bfloat16 along which much of the norm lies, U [n, n] such that the columns of L U are
    orthonormal, and about how long each row of B is, squared [rows].

    All that is multiplied by on the way is bfloat16, so that one product does: which vectors they are does not matter,
    as long as they are the same wherever they are used."""
    probes = _probes(layer.width, _PROBES_PER_DIRECTION * rank, seed)
    along = layer.b.times(probes)
    squares = np.square(along, dtype=np.float64).mean(axis=1)
    found = layer.a.transposed_times(cut_to_bfloat16(along))
    found /= np.abs(found).max(initial=0.0) or 1.0
    if not np.isfinite(found).all():
        return np.zeros((layer.width, 0), BFLOAT16), np.zeros((0, 0), np.float32), squares
    wide = found.astype(np.float64)
    values, vectors = np.linalg.eigh(wide.T @ wide)
    values, vectors = values[-rank:], vectors[:, -rank:]
    kept = values > _INDEPENDENT**2 * values[-1]
    spanning = cut_to_bfloat16(found @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32))
    wide = spanning.astype(np.float64)
    return spanning, np.linalg.inv(np.linalg.cholesky(wide.T @ wide)).T.astype(np.float32), squares


def _within(width: int, sketch: Sketch, directions: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What the sketch of L L^T M would be, of orthonormal ``directions`` L [width, n] and their ``image`` M^T L."""
    left, right = block_signs(width, sketch.columns, sketch.seed)
    inside, outside = _projected(directions, left), _projected(image, right)
    return np.asarray(inside.T @ (outside / np.float32(SIGNS_PER_ROW)))


def _projected(columns: np.ndarray, signs: BlockSigns) -> np.ndarray:
    """columns [width, n], transposed, times the signs: [n, columns of the signs]."""
    out = np.empty((columns.shape[1], signs.columns), np.float32)
    signs.project(np.ascontiguousarray(columns.T, np.float32), out)
    return out


def _interval_of(width: int, sketches: Sequence[Sketch], captured: float, beside: float = 0.0) -> Estimate:
    """What sketches of a matrix tell of its norm, with what was ``captured`` beside it, whose norm may be off by
    ``beside``, and what was taken off the sketches likewise. They count by their columns, which their variances fall
    with."""
    total = sum(one.columns for one in sketches)
    squared = spread = largest = off = 0.0
    for one in sketches:
        share, own = one.columns / total, squared_norm(one.small)
        if not np.isfinite(own + captured):
            return Estimate(math.nan, math.nan, math.nan)
        squared += share * own
        left, right = block_signs(width, one.columns, one.seed)
        for form, eigenvalue in (left.form(one.small), right.form(one.small.T)):
            spread, largest = spread + share**2 * form, max(largest, share * eigenvalue)
        off = max(off, one.rounding / math.sqrt(own) if own else 0.0)
    low, high = _interval(squared, spread, largest)
    low, high = low * max(1 - off, 0.0) ** 2, high * (1 + off) ** 2
    if math.isinf(high) and squared * _WORST_LOSS <= 1e-3 * captured:
        # What is left beside the directions is next to nothing, and rounding in part: no form of it can matter.
        high = squared * _WORST_LOSS
    return Estimate(
        math.sqrt(captured + squared),
        max(math.sqrt(captured + low) * (1 - _ROUNDING) - 2 * beside, 0.0),
        math.sqrt(captured + high) * (1 + _ROUNDING) + 2 * beside,
    )


def _interval(squared: float, spread: float, largest: float) -> tuple[float, float]:
    """Where the exact squared norm is, by lemma 1 of Laurent and Massart for forms that are independent, of the squared
    norm ``spread`` together, and their largest eigenvalue."""
    if squared == 0.0:
        return 0.0, math.inf
    width = math.sqrt(4 * FAILURE_EXPONENT * spread / SIGNS_PER_ROW) / squared
    # Only the upper tail of a form has an exponential part, with its largest eigenvalue.
    tail = 2 * FAILURE_EXPONENT * largest / SIGNS_PER_ROW / squared
    return squared / (1 + width + tail), squared / (1 - width) if width < 1 else math.inf
