"""Estimates of a large layer's score from seeded random projections, with intervals that hold the exact score.

The gate matrix M = A^T B (A the query weights, summed over each group, B the key weights) is never formed. Both sides
are projected to ``columns`` dimensions, M' = (A F)^T (B G), and ||M'||_F^2 estimates ||M||_F^2 without bias: F and G
are block diagonal with dense random signs in each block, so that projecting costs little more than reading.

*Interval.* With the other side held, the estimate is a quadratic form z^T S z in random signs, plus what does not vary.
Its variance is 2 / k times the sum of ||S_b||_F^2 over the diagonal blocks S_b of M^T M (then of M G G^T M^T), without
their diagonals, where k is the number of signs in a row. The sketch measures that sum: inner products (z^T S_b z')^2 of
different columns of a block have ||S_b||_F^2 as their mean, and overstate it by the noise of the other side. The half
width is that of lemma 1 of Laurent and Massart (Annals of Statistics 28, 2000) for Gaussian forms of that variance at
e^-t on either side, t = 16, relative to the estimate: the interval runs from X / (1 + w) to X / (1 - w), so that an
estimate that is too small comes with too large a width. This is conservative, not a theorem: signs vary less than
Gaussians, but the variance is measured. Where one block of columns holds all of the norm it is measured badly; then w
passes 1, and the upper end is infinite. In the tests, w is six and more standard deviations for every spectrum tried.

*Deflation.* Real gate matrices have a few directions that hold most of the norm and nearly all of the variance. A
refined sketch finds such directions L, takes ||L^T M||_F^2 exactly, and estimates only the rest,
||(I - L L^T) M||_F^2, from signs that know nothing of L: the idea of Hutch++ (Meyer, Musco, Musco and Woodruff, SOSA
2021) for a Frobenius norm. L comes from the sketch before: M G V spans it, with V the leading right singular vectors of
M', a range finder (Halko, Martinsson and Tropp, SIAM Review 53, 2011) that was aimed. The interval holds for any L that
the new signs are independent of, good or bad, so it does not matter that L was drawn from the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gatenorm_export.scoring.rows import Matrix

FAILURE_EXPONENT = 16.0
"""t: an interval fails with probability e^-t, one in nine million, on either side, as far as its variance is known."""

SIGNS_PER_ROW = 16
"""Columns of a block. Sixteen independent signs for each dimension: no two dimensions can cancel each other in all."""

# How much of the least that the diagonal can be is taken off: the trace is an estimate too.
_SURE_DIAGONAL = 0.8
# What float32 rounds off a projection of random signs, relative; measured below 1e-6 at d = 8192.
_ROUNDING = 1e-5
ROWS_AT_A_TIME = 32
"""Rows that are converted and projected at once: in float32 they stay in cache."""

# What directions gather is [rank, width], added to for every block: blocks twice as large, still in cache, are cheaper.
_ROWS_WITH_DIRECTIONS = 64

# Steps of subspace iteration on the small matrix. Two make intervals narrower by a thirtieth, and cost what that saves.
_LEAD_STEPS = 1

# A form of rank one in one block loses a factor of 30 on either side at e^-20: the lower tail of chi squared of 16.
_WORST_LOSS = 1000.0


@dataclass(frozen=True)
class Estimate:
    """An estimate of ||M||_F and the interval that holds it; ``high`` may be infinite."""

    score: float
    low: float
    high: float
    leads: np.ndarray | None = field(default=None, compare=False, repr=False)
    """[rows, n] in half precision: where a further sketch finds the directions that hold most of the norm."""


class BlockSigns:
    """A random matrix [width, columns], block diagonal, of signs / sqrt(SIGNS_PER_ROW): E[F F^T] = I."""

    def __init__(self, width: int, columns: int, rng: np.random.Generator) -> None:
        blocks = max(1, min(columns // SIGNS_PER_ROW, width // SIGNS_PER_ROW))
        self.block = width // blocks
        self._full = width // self.block
        self._rest = width - self._full * self.block
        self.blocks = self._full + (self._rest > 0)
        self.columns = self.blocks * SIGNS_PER_ROW
        signs = rng.integers(0, 2, (width, SIGNS_PER_ROW), dtype=np.int8).astype(np.float32)
        signs = (2 * signs - 1) / np.float32(math.sqrt(SIGNS_PER_ROW))
        self._signs = signs[: self._full * self.block].reshape(self._full, self.block, SIGNS_PER_ROW)
        self._last = signs[self._full * self.block :]

    def form(self, small: np.ndarray) -> tuple[float, float]:
        """What the columns of a projected matrix [m, columns] tell of the form in these signs, S without its diagonal:
        the sum of ||S_b||_F^2 over the blocks, and a bound on the largest eigenvalue.

        (z^T S_b z')^2 of two different columns has the mean ||S_b||_F^2, diagonal and all. Of it the diagonal is at
        least (trace S_b)^2 / rows, and the trace is what the columns' norms estimate.
        """
        total = largest = 0.0
        for number in range(self.blocks):
            block = small[:, number * SIGNS_PER_ROW : (number + 1) * SIGNS_PER_ROW]
            gram = block.T @ block
            diagonal = gram.diagonal()
            pairs = float(np.vdot(gram, gram) - np.vdot(diagonal, diagonal))
            squared = pairs * SIGNS_PER_ROW / (SIGNS_PER_ROW - 1)
            rows = self.block if number < self._full else self._rest
            beside = max(squared - _SURE_DIAGONAL * float(diagonal.sum()) ** 2 / rows, (1 - _SURE_DIAGONAL) * squared)
            total, largest = total + beside, max(largest, beside)
        return total, math.sqrt(largest)

    def project(self, rows: np.ndarray, out: np.ndarray) -> None:
        """rows [n, width] times the matrix, into ``out`` [n, columns]."""
        cut, wide = self._full * self.block, self._full * SIGNS_PER_ROW
        left = rows[:, :cut].reshape(len(rows), self._full, self.block).transpose(1, 0, 2)
        np.matmul(left, self._signs, out=out[:, :wide].reshape(len(rows), self._full, SIGNS_PER_ROW).transpose(1, 0, 2))
        if self._rest:
            np.matmul(rows[:, cut:], self._last, out=out[:, wide:])


def sketch(
    query: Matrix,
    key: Matrix,
    *,
    head_dim: int,
    columns: int,
    rng: np.random.Generator,
    rank: int = 0,
    hint: np.ndarray | None = None,
    leads: int = 0,
) -> Estimate:
    """Estimate the score of one layer, all heads together.

    ``query`` [n_heads * head_dim, d_model] and ``key`` [n_kv_heads * head_dim, d_model]; ``columns`` dimensions are
    kept on either side, and ``rank`` directions are taken exactly, found from ``hint``: the leads of an earlier sketch
    of the layer, which was made with other signs, or None. That goes through the weights twice. ``leads`` are as many
    as the estimate is asked to give. Weights with NaN or infinity give a score that is not finite.
    """
    rows, width = key.shape
    left, right = BlockSigns(width, columns, rng), BlockSigns(width, columns, rng)
    small_query = np.empty((rows, left.columns), np.float32)
    small_key = np.empty((rows, right.columns), np.float32)
    if not rank:
        for part, block in _blocks(key, rows, head_dim, ROWS_AT_A_TIME):
            right.project(block, small_key[part])
        for part, block in _blocks(query, rows, head_dim, ROWS_AT_A_TIME):
            left.project(block, small_query[part])
        small = _product(small_query, small_key)
        return _estimate(small, 0.0, left, right, _leads(small, small_key, leads, rng))
    seen = _seen(key, head_dim, rank, rng) if hint is None else hint[:, :rank].astype(np.float32)
    found = np.zeros((seen.shape[1], width), np.float32)
    # Group sums are made once: in float32 they take no more than the query weights that they come from.
    summed = np.empty((rows, width), np.float32) if len(query) > rows else None
    for part, block in _blocks(query, rows, head_dim, _ROWS_WITH_DIRECTIONS):
        left.project(block, small_query[part])
        found += seen[part].T @ block
        if summed is not None:
            summed[part] = block
    directions = np.zeros((width, 0), np.float32)
    if np.isfinite(found).all() and found.any():
        directions = np.ascontiguousarray(np.linalg.qr(found.T.astype(np.float64))[0], np.float32)
    along = np.empty((rows, directions.shape[1]), np.float32)
    for part, block in _blocks(query if summed is None else summed, rows, head_dim, _ROWS_WITH_DIRECTIONS):
        np.matmul(block, directions, out=along[part])
    image = np.zeros((directions.shape[1], width), np.float32)
    for part, block in _blocks(key, rows, head_dim, _ROWS_WITH_DIRECTIONS):
        right.project(block, small_key[part])
        image += along[part].T @ block
    small = _product(small_query, small_key)
    following = _leads(small, small_key, leads, rng)
    captured = float(np.vdot(image.astype(np.float64), image.astype(np.float64)))
    inside, outside = (
        np.empty((len(image), left.columns), np.float32),
        np.empty((len(image), right.columns), np.float32),
    )
    left.project(np.ascontiguousarray(directions.T), inside)
    right.project(image, outside)
    small -= inside.T.astype(np.float64) @ outside.astype(np.float64)
    return _estimate(small, captured, left, right, following)


def _seen(key: Matrix, head_dim: int, rank: int, rng: np.random.Generator) -> np.ndarray:
    """The key weights times random vectors, [rows, rank]: where nothing is known of the layer, leads without aim."""
    rows, width = key.shape
    test = rng.standard_normal((width, rank), dtype=np.float32)
    seen = np.empty((rows, rank), np.float32)
    for part, block in _blocks(key, rows, head_dim, _ROWS_WITH_DIRECTIONS):
        np.matmul(block, test, out=seen[part])
    return seen


def _leads(small: np.ndarray, small_key: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """B G V, [rows, count], where V spans about the leading right singular vectors of the sketch M': A^T of that,
    M G V, spans about the leading left ones of M. Half precision does: directions need not be exact, only the same
    ones wherever they are used."""
    count = min(count, *small.shape)
    if not count or not np.isfinite(small).all() or not small.any():
        return None
    matrix = (small / np.abs(small).max()).astype(np.float32)
    vectors = rng.standard_normal((matrix.shape[1], count), dtype=np.float32)
    for _ in range(_LEAD_STEPS):
        vectors = np.linalg.qr(matrix.T @ (matrix @ vectors))[0]
    leads = small_key @ vectors
    largest = np.abs(leads).max(axis=0)
    return (leads / np.where(largest > 0, largest, 1)).astype(np.float16)


def _blocks(array: Matrix, rows: int, head_dim: int, step: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows in float32, few at a time: group sums of the query weights, or the weights as they are."""
    if len(array) == rows:
        buffer = np.empty((min(step, rows), array.shape[1]), np.float32)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            target = buffer[: stop - start]
            np.copyto(target, array[start:stop], casting="unsafe")
            yield slice(start, stop), target
        return
    group, width = len(array) // rows, array.shape[1]
    total, scratch = np.empty((head_dim, width), np.float32), np.empty((min(step, head_dim), width), np.float32)
    for head in range(rows // head_dim):
        # Heads one after the other, in the order in which they are stored: that order is the cheap one to read.
        for member in range(group):
            first = (head * group + member) * head_dim
            for start in range(0, head_dim, step):
                stop = min(start + step, head_dim)
                rows_here, sum_here = array[first + start : first + stop], total[start:stop]
                if member == 0:
                    np.copyto(sum_here, rows_here, casting="unsafe")
                else:
                    np.copyto(scratch[: stop - start], rows_here, casting="unsafe")
                    np.add(sum_here, scratch[: stop - start], out=sum_here)
        yield slice(head * head_dim, (head + 1) * head_dim), total


def _product(small_query: np.ndarray, small_key: np.ndarray) -> np.ndarray:
    total = np.zeros((small_query.shape[1], small_key.shape[1]))
    for start in range(0, len(small_query), 1024):
        total += small_query[start : start + 1024].T @ small_key[start : start + 1024]
    return total


def _estimate(
    small: np.ndarray, captured: float, left: BlockSigns, right: BlockSigns, leads: np.ndarray | None = None
) -> Estimate:
    squared = float(np.vdot(small, small))
    if not np.isfinite(squared + captured):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = _interval(squared, left.form(small.T), right.form(small))
    if math.isinf(high) and squared * _WORST_LOSS <= 1e-3 * captured:
        # What is left beside the directions is next to nothing, and rounding in part: no form of it can matter.
        high = squared * _WORST_LOSS
    return Estimate(
        math.sqrt(captured + squared),
        math.sqrt(captured + low) * (1 - _ROUNDING),
        math.sqrt(captured + high) * (1 + _ROUNDING),
        leads,
    )


def _interval(squared: float, *forms: tuple[float, float]) -> tuple[float, float]:
    """Where the exact squared norm is, by lemma 1 of Laurent and Massart for the forms of both sides."""
    if squared == 0.0:
        return 0.0, math.inf
    spread = sum(frobenius for frobenius, _ in forms)
    width = math.sqrt(4 * FAILURE_EXPONENT * spread / SIGNS_PER_ROW) / squared
    # Only the upper tail of a form has an exponential part, with its largest eigenvalue.
    tail = 2 * FAILURE_EXPONENT * max(largest for _, largest in forms) / SIGNS_PER_ROW / squared
    return squared / (1 + width + tail), squared / (1 - width) if width < 1 else math.inf
