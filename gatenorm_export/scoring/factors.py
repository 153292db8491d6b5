"""The two factors of a gate matrix M = A^T B and what a sketch multiplies them by.

B are the key weights, A the query weights summed over the heads of each group. Neither is made whole in float32: numpy
takes a few rows at a time, and bfloat16 weights are multiplied as they are stored where the CPU and oneDNN can.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from gatenorm_export.scoring.bfloat16_products import BFLOAT16, Bfloat16Products, bfloat16_products
from gatenorm_export.scoring.rows import ROWS_AT_A_TIME, Matrix
from gatenorm_export.scoring.signs import BlockSigns

# What is digested, then multiplied: less costs calls, more leaves the caches before it is multiplied.
_BYTES_AT_A_TIME = 1 << 22
_PIECES = 3


class Factor(Protocol):
    """A [rows, width], and the arithmetic of its products."""

    @property
    def arithmetic(self) -> str:
        """What multiplies, for records; empty for numpy."""

    def project(self, signs: BlockSigns) -> np.ndarray:
        """A F, [rows, columns]; goes through the rows once, from the first to the last."""

    def times(self, right: np.ndarray) -> np.ndarray:
        """A Z, [rows, n]."""

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """A^T Y, [width, n]."""


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

    def project(self, signs: BlockSigns) -> np.ndarray:
        """See :class:`Factor`."""
        out = np.empty((self._rows, signs.columns), np.float32)
        for part, block in self._blocks():
            signs.project(block, out[part])
        return out

    def times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        out = np.empty((self._rows, right.shape[1]), np.float32)
        for part, block in self._blocks():
            np.matmul(block, right, out=out[part])
        return out

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
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
    """By the CPU's bfloat16 units, as stored. Products are linear, so heads are summed behind them.

    What is multiplied by is float32, taken as the sum of up to three bfloat16 matrices, which it is exactly.
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
        out = np.empty((self._rows, signs.columns), np.float32)
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
        pieces = bfloat16_pieces(right)
        whole = self._weights[0 : len(self._weights)]
        out = np.empty((len(whole), len(pieces) * right.shape[1]), np.float32)
        self._products.multiply(whole, np.concatenate(pieces, axis=1), out)
        heads = (self._rows // self._head_dim, self._group, self._head_dim, len(pieces), right.shape[1])
        return np.asarray(out.reshape(heads).sum(axis=(1, 3))).reshape(self._rows, -1)

    def transposed_times(self, right: np.ndarray) -> np.ndarray:
        """See :class:`Factor`."""
        whole = self._weights[0 : len(self._weights)]
        pieces = [self._for_each_head(piece) for piece in bfloat16_pieces(right)]
        left = np.ascontiguousarray(np.concatenate(pieces, axis=1).T)
        out = np.empty((len(left), whole.shape[1]), np.float32)
        self._products.multiply(left, whole, out)
        return np.asarray(out.reshape(len(pieces), -1, whole.shape[1]).sum(axis=0)).T

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

    def _for_each_head(self, right: np.ndarray) -> np.ndarray:
        """[rows, n] with the rows of a group once for each of its heads."""
        if self._group == 1:
            return right
        groups = right.reshape(self._rows // self._head_dim, 1, self._head_dim, right.shape[1])
        return groups.repeat(self._group, axis=1).reshape(len(self._weights), -1)


def bfloat16_pieces(values: np.ndarray) -> list[np.ndarray]:
    """Up to three bfloat16 matrices that add up to a float32 one: 24 bits are three times eight."""
    pieces: list[np.ndarray] = []
    rest = values.astype(np.float32, copy=False)
    while len(pieces) < _PIECES and (not pieces or rest.any()):
        pieces.append(rest.astype(BFLOAT16))
        rest = rest - pieces[-1].astype(np.float32)
    return pieces
