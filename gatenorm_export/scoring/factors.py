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
from gatenorm_export.scoring.gate_norm import ROWS_AT_A_TIME, by_group, group_sum
from gatenorm_export.scoring.signs import BlockSigns

# Columns of weights that a product goes through at a time when it goes through them by columns.
_COLUMNS_AT_A_TIME = 1024
# Of inner products of rounded numbers: one column in so many is looked at, and what hundreds of columns leave of the
# 2^-8 that rows alike err by.
_SAMPLED, _ALIKE = 13, 2.0**-12


class Factor(Protocol):
    """A [rows, width], and the arithmetic of its products."""

    @property
    def arithmetic(self) -> str:
        """What multiplies, for records; empty for numpy."""

    @property
    def roundings(self) -> int:
        """How often :meth:`project` rounds to bfloat16 on the way."""

    def project(self, signs: BlockSigns) -> np.ndarray:
        """A F, [rows, columns], in float32, or in bfloat16 where that is cheaper; goes through the weights once."""

    def times(self, right: np.ndarray) -> np.ndarray:
        """A Z, [rows, n], in float32; Z in float32 or bfloat16."""

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """A^T Y, [width, n], in float32; Y in bfloat16, or in float32 of which up to 2^-17 may be rounded off."""


def factor(weights: np.ndarray, rows: int, head_dim: int) -> Factor:
    """The factor that ``weights`` [n_heads * head_dim, width] give when their heads are summed to ``rows``."""
    products = bfloat16_products() if weights.dtype == BFLOAT16 else None
    if products is None:
        return Float32Factor(weights, rows, head_dim)
    return Bfloat16Factor(weights, rows, head_dim, products)


class Float32Factor:
    """By numpy, converted a few rows at a time."""

    arithmetic = ""
    roundings = 0

    def __init__(self, weights: np.ndarray, rows: int, head_dim: int) -> None:
        self._weights, self._rows, self._head_dim = weights, rows, head_dim
        self._width = weights.shape[1]
        # Nothing is to be summed or converted: one product instead of many of a few rows.
        ready = weights.dtype == np.float32 and len(weights) == rows
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
        stored = len(weights) // rows * head_dim
        for head in range(rows // head_dim):
            own = weights[head * stored : (head + 1) * stored]
            yield slice(head * head_dim, (head + 1) * head_dim), group_sum(own, head_dim, head_dim, np.float32)


class Bfloat16Factor:
    """By the CPU's bfloat16 units, as stored. To be projected, grouped heads are summed and rounded; other products of
    them take sums in float32, which whoever needs several makes once.

    A float32 matrix that is multiplied by is taken as the sum of two bfloat16 ones.
    """

    def __init__(self, weights: np.ndarray, rows: int, head_dim: int, products: Bfloat16Products) -> None:
        self._weights, self._rows, self._head_dim, self._products = weights, rows, head_dim, products
        self._group = len(weights) // rows
        self.roundings = 1 if self._group == 1 else 2

    @property
    def arithmetic(self) -> str:
        """See :class:`Factor`."""
        return self._products.words

    def project(self, signs: BlockSigns) -> np.ndarray:
        """See :class:`Factor`."""
        out = np.empty((self._rows, signs.columns), BFLOAT16)
        if self._group == 1:
            signs.project(self._weights, out, self._products.multiply)
            return out
        # A sum streams faster than a product; rounded, it stays in cache and is projected as others are.
        summed = np.empty((self._head_dim, self._weights.shape[1]), BFLOAT16)
        groups = by_group(np.ascontiguousarray(self._weights), self._rows, self._head_dim)
        for heads, target in zip(groups, by_group(out, self._rows, self._head_dim), strict=True):
            self._products.add(heads, summed)
            signs.project(summed, target[0], self._products.multiply)
        return out

    def times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        if self._group > 1:
            return self._summed().times(right)
        pieces, count = bfloat16_pieces(right)
        out = np.empty((self._rows, pieces.shape[1]), np.float32)
        self._products.multiply(self._weights, pieces, out)
        return _added(out, count)

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        if self._group > 1:
            return self._summed().transposed_times(right)
        pieces, count = bfloat16_pieces(right)
        width = self._weights.shape[1]
        out = np.empty((width, pieces.shape[1]), np.float32)
        for start in range(0, width, _COLUMNS_AT_A_TIME):
            part = slice(start, start + _COLUMNS_AT_A_TIME)
            self._products.multiply(self._weights[:, part].T, pieces, out[part])
        return _added(out, count)

    def _summed(self) -> Float32Factor:
        summed = group_sum(self._weights, self._rows, self._head_dim, np.float32)
        return Float32Factor(summed, self._rows, self._head_dim)


def inner_products(left: np.ndarray, right: np.ndarray, roundings: int) -> tuple[np.ndarray, float]:
    """left^T right of what :meth:`Factor.project` gives, [rows, m] and [rows, n], in float32 [m, n], and how far off
    its Frobenius norm is because of the ``roundings`` to bfloat16 on the way of both.

    A number that keeps eight bits errs by at most 2^-8 of itself, evenly spread: in the mean square, by 2^-14 / 12. So
    errors that are independent make a matrix whose squared norm is that, times the sum of |a_r|^2 |b_r|^2 over the
    rows, for each rounding; one column in 13 stands for all, a number that shares no factor with their blocks. The norm
    is off by the norm of the error at most. Rows that are alike err alike: the sum over them averages nothing, but what
    the norm makes of hundreds of columns still does.
    """
    products = bfloat16_products() if left.dtype == right.dtype == BFLOAT16 else None
    if products is not None:
        out = np.empty((left.shape[1], right.shape[1]), np.float32)
        products.multiply(left.T, right, out)
    else:
        out = left.astype(np.float32, copy=False).T @ right.astype(np.float32, copy=False)
    if not roundings:
        return out, 0.0
    a_squares, b_squares = (_squared_lengths(side) for side in (left, right))
    apart = 2.0**-14 / 12 * roundings * float(a_squares @ b_squares)
    return out, math.sqrt(apart) + _ALIKE * roundings * math.sqrt(squared_norm(out))


def squared_norm(values: np.ndarray) -> float:
    """||values||_F^2, added up in float64."""
    wide = values.astype(np.float64, copy=False)
    return float(np.vdot(wide, wide))


def _squared_lengths(rows: np.ndarray) -> np.ndarray:
    """About how long each row is, squared, in float64."""
    sampled = rows[:, ::_SAMPLED].astype(np.float32)
    squares: np.ndarray = np.einsum("rc,rc->r", sampled, sampled).astype(np.float64)
    return np.asarray(squares * (rows.shape[1] / sampled.shape[1]))


def cut_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 without its last 16 bits: what bfloat16 keeps, rounded towards zero. Many times as fast as a cast."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)


def bfloat16_pieces(values: np.ndarray) -> tuple[np.ndarray, int]:
    """What adds up to ``values`` [rows, n] in bfloat16, side by side, and how many there are: two for float32, which
    keep 17 of 24 bits, and one for bfloat16."""
    if values.dtype == BFLOAT16:
        return values, 1
    first = values.astype(BFLOAT16)
    return np.concatenate([first, (values - first.astype(np.float32)).astype(BFLOAT16)], axis=1), 2


def _added(pieces: np.ndarray, count: int) -> np.ndarray:
    """Pieces side by side, added up."""
    return pieces if count == 1 else np.asarray(pieces.reshape(len(pieces), count, -1).sum(axis=1))
