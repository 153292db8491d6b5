"""The two factors of a gate matrix M = A^T B and what a sketch multiplies them by.

B are the key weights, A the query weights summed over the heads of each group. Neither is made whole in float32: numpy
takes a few rows at a time, and bfloat16 weights are multiplied as they are stored where the CPU and oneDNN can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from gatenorm_export.scoring.bfloat16_products import BFLOAT16, Bfloat16Products, bfloat16_products
from gatenorm_export.scoring.gate_norm import group_sum
from gatenorm_export.scoring.rows import ROWS_AT_A_TIME, Matrix
from gatenorm_export.scoring.signs import BlockSigns

# What is digested, then multiplied: less costs calls, more leaves the caches before it is multiplied.
_BYTES_AT_A_TIME = 1 << 21
_PIECES = 3
# Of inner products of rounded numbers: one column in so many is looked at, and what hundreds of columns leave of the
# 2^-8 that rows alike err by.
_SAMPLED, _ALIKE = 13, 2.0**-12


class Factor(Protocol):
    """A [rows, width], and the arithmetic of its products."""

    @property
    def arithmetic(self) -> str:
        """What multiplies, for records; empty for numpy."""

    def project(self, signs: BlockSigns) -> np.ndarray:
        """A F, [rows, columns], in float32, or in bfloat16 where that is cheaper; goes through the rows once, from the
        first to the last."""

    def times(self, right: np.ndarray) -> np.ndarray:
        """A Z, [rows, n], in float32; Z in float32 or bfloat16."""

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """A^T Y, [width, n], in float32; Y in float32 or bfloat16."""


def factor(weights: Matrix, rows: int, head_dim: int) -> Factor:
    """The factor that ``weights`` [n_heads * head_dim, width] give when their heads are summed to ``rows``."""
    products = bfloat16_products() if weights.dtype == BFLOAT16 else None
    if products is None:
        return Float32Factor(weights, rows, head_dim)
    return Bfloat16Factor(weights, rows, head_dim, products)


class Float32Factor:
    """By numpy, converted a few rows at a time."""

    arithmetic = ""

    def __init__(self, weights: Matrix, rows: int, head_dim: int) -> None:
        self._weights, self._rows, self._head_dim = weights, rows, head_dim
        self._width = weights.shape[1]
        # Nothing is to be summed or converted: one product instead of many of a few rows.
        ready = isinstance(weights, np.ndarray) and weights.dtype == np.float32 and len(weights) == rows
        self._ready = weights if ready else None

    def project(self, signs: BlockSigns) -> np.ndarray:
        """See :class:`Factor`."""
        out = np.empty((self._rows, signs.columns), np.float32)
        for part, block in self._blocks():
            signs.project(block, out[part])
        return out

    def times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        right = right.astype(np.float32, copy=False)
        if self._ready is not None:
            return np.asarray(self._ready @ right)
        out = np.empty((self._rows, right.shape[1]), np.float32)
        for part, block in self._blocks():
            np.matmul(block, right, out=out[part])
        return out

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        right = right.astype(np.float32, copy=False)
        if self._ready is not None:
            return np.asarray((right.T @ self._ready).T)
        out = np.zeros((right.shape[1], self._width), np.float32)
        for part, block in self._blocks():
            out += right[part].T @ block
        return out.T

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows in float32, few at a time: group sums, or the weights as they are."""
        weights, rows, step, head_dim = self._weights, self._rows, ROWS_AT_A_TIME, self._head_dim
        if len(weights) == rows:
            buffer = np.empty((min(step, rows), self._width), np.float32)
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                target = buffer[: stop - start]
                np.copyto(target, weights[start:stop], casting="unsafe")
                yield slice(start, stop), target
            return
        group = len(weights) // rows
        total, scratch = (np.empty((size, self._width), np.float32) for size in (head_dim, min(step, head_dim)))
        for head in range(rows // head_dim):
            # Heads one after the other, in the order in which they are stored: that order is the cheap one to read.
            for member in range(group):
                first = (head * group + member) * head_dim
                for start in range(0, head_dim, step):
                    stop = min(start + step, head_dim)
                    rows_here, sum_here = weights[first + start : first + stop], total[start:stop]
                    if member == 0:
                        np.copyto(sum_here, rows_here, casting="unsafe")
                    else:
                        np.copyto(scratch[: stop - start], rows_here, casting="unsafe")
                        np.add(sum_here, scratch[: stop - start], out=sum_here)
            yield slice(head * head_dim, (head + 1) * head_dim), total


class Bfloat16Factor:
    """By the CPU's bfloat16 units, as stored. A projection is linear, so heads are summed behind it; other products of
    grouped heads take their sums in float32, which whoever needs several makes once.

    What is multiplied by is taken as the sum of up to three bfloat16 matrices, which a float32 one is exactly.
    """

    def __init__(self, weights: Matrix, rows: int, head_dim: int, products: Bfloat16Products) -> None:
        self._weights, self._rows, self._head_dim, self._products = weights, rows, head_dim, products
        self._group = len(weights) // rows

    @property
    def arithmetic(self) -> str:
        """See :class:`Factor`."""
        return self._products.words

    def project(self, signs: BlockSigns) -> np.ndarray:
        """See :class:`Factor`."""
        # What is to be added up is not rounded before.
        dtype = BFLOAT16 if self._group == 1 else np.dtype(np.float32)
        out = np.empty((self._rows, signs.columns), dtype)
        buffer = np.empty((self._rows_at_a_time, signs.columns), np.float32)
        for start, stop, target, first in self._steps():
            block = self._weights[start:stop]
            if first:
                signs.project(block, out[target], self._products.multiply)
            else:
                signs.project(block, buffer[: stop - start], self._products.multiply)
                out[target] += buffer[: stop - start]
        return out

    def times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        if self._group > 1:
            return self._summed().times(right)
        pieces = bfloat16_pieces(right)
        out = np.empty((self._rows, len(pieces) * right.shape[1]), np.float32)
        self._products.multiply(self._weights[0 : self._rows], np.concatenate(pieces, axis=1), out)
        return np.asarray(out.reshape(self._rows, len(pieces), -1).sum(axis=1))

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        if self._group > 1:
            return self._summed().transposed_times(right)
        whole, pieces = self._weights[0 : self._rows], bfloat16_pieces(right)
        left = np.ascontiguousarray(np.concatenate(pieces, axis=1).T)
        out = np.empty((len(left), whole.shape[1]), np.float32)
        self._products.multiply(left, whole, out)
        return np.asarray(out.reshape(len(pieces), -1, whole.shape[1]).sum(axis=0)).T

    def _summed(self) -> Float32Factor:
        whole = self._weights[0 : len(self._weights)]
        return Float32Factor(group_sum(whole, self._rows, self._head_dim, np.float32), self._rows, self._head_dim)

    @property
    def _rows_at_a_time(self) -> int:
        return max(16, _BYTES_AT_A_TIME // (2 * self._weights.shape[1]) // 16 * 16)

    def _steps(self) -> Iterator[tuple[int, int, slice, bool]]:
        """Rows of the weights in the order in which they are stored: from, to, the rows that they are added up in, and
        whether they are the first of those."""
        run = self._head_dim if self._group > 1 else self._rows
        for start in range(0, len(self._weights), run):
            head, member = divmod(start // run, self._group)
            for offset in range(0, run, self._rows_at_a_time):
                count = min(self._rows_at_a_time, run - offset)
                into = head * run + offset
                yield start + offset, start + offset + count, slice(into, into + count), member == 0


def inner_products(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """left^T right of what :meth:`Factor.project` gives, [rows, m] and [rows, n], in float64 [m, n], and how far off
    its Frobenius norm is because of what was rounded to bfloat16.

    A number that keeps eight bits errs by at most 2^-8 of itself, evenly spread: in the mean square, by 2^-14 / 12. So
    errors that are independent make a matrix whose squared norm is that, times the sum of |a_r|^2 |b_r|^2 over the
    rows, for each side; one row in 17 stands for it, a number that shares no factor with the size of a head. The norm
    is off by the norm of the error at most. Rows that are alike err alike: the sum over them averages nothing, but what
    the norm makes of hundreds of columns still does.
    """
    rounded = sum(side.dtype == BFLOAT16 for side in (left, right))
    products = bfloat16_products() if rounded == 2 else None
    if products is not None:
        out = np.empty((left.shape[1], right.shape[1]), np.float32)
        products.multiply(left.T, right, out)
        total = out.astype(np.float64)
    else:
        total = np.zeros((left.shape[1], right.shape[1]))
        for start in range(0, len(left), 1024):
            a, b = (side[start : start + 1024].astype(np.float32, copy=False) for side in (left, right))
            total += a.T @ b
    if not rounded:
        return total, 0.0
    a_squares, b_squares = (_squared_lengths(side) for side in (left, right))
    apart = 2.0**-14 / 12 * rounded * float(a_squares @ b_squares)
    return total, math.sqrt(apart) + _ALIKE * rounded * float(np.linalg.norm(total))


def _squared_lengths(rows: np.ndarray) -> np.ndarray:
    """About how long each row is, squared, in float64."""
    sampled = rows[:, ::_SAMPLED].astype(np.float32)
    squares: np.ndarray = np.einsum("rc,rc->r", sampled, sampled).astype(np.float64)
    return np.asarray(squares * (rows.shape[1] / sampled.shape[1]))


def cut_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 without its last 16 bits: what bfloat16 keeps, rounded towards zero. Many times as fast as a cast."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)


def bfloat16_pieces(values: np.ndarray) -> list[np.ndarray]:
    """Up to three bfloat16 matrices that add up to one of float32: 24 bits are three times eight. One of bfloat16 is
    its only piece."""
    if values.dtype == BFLOAT16:
        return [values]
    pieces = [cut_to_bfloat16(values)]
    rest = values - pieces[0].astype(np.float32)
    while len(pieces) < _PIECES and rest.any():
        pieces.append(cut_to_bfloat16(rest))
        rest -= pieces[-1].astype(np.float32)
    return pieces
