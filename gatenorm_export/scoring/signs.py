"""Random sign matrices that cost little more to multiply by than the rows cost to read."""

from __future__ import annotations

import functools
import math

import numpy as np

from gatenorm_export.scoring.bfloat16_products import BFLOAT16, Multiply

SIGNS_PER_ROW = 16
"""Columns of a block. Sixteen independent signs for each dimension: no two dimensions can cancel each other in all."""

# How much of the least that the diagonal can be is taken off: the trace is an estimate too.
_SURE_DIAGONAL = 0.8
# Rows of a tile of AMX in pairs, and how far, by a factor of e to that, a block's length may be from what was asked.
_TILE, _NEAR = 32, 0.3


class BlockSigns:
    """A random matrix F [width, columns], block diagonal, of signs / sqrt(SIGNS_PER_ROW): E[F F^T] = I."""

    def __init__(self, width: int, columns: int, rng: np.random.Generator) -> None:
        """About ``columns`` of them: as many as blocks of one length make, a divisor of the width where one is near."""
        blocks = max(1, min(columns // SIGNS_PER_ROW, width // SIGNS_PER_ROW))
        self.block = _even_block(width, width / blocks) or width // blocks
        self._full = width // self.block
        self._rest = width - self._full * self.block
        self.blocks = self._full + (self._rest > 0)
        self.columns = self.blocks * SIGNS_PER_ROW
        signs = rng.integers(0, 2, (width, SIGNS_PER_ROW), dtype=np.int8).astype(np.float32)
        signs = (2 * signs - 1) / np.float32(math.sqrt(SIGNS_PER_ROW))
        # Quarters are exact in any float type.
        self._signs = {dtype: signs.astype(dtype) for dtype in (np.dtype(np.float32), BFLOAT16)}

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

    def project(self, rows: np.ndarray, out: np.ndarray, multiply: Multiply = np.matmul) -> None:
        """rows [n, width] times the matrix, into ``out`` [n, columns]; ``multiply`` takes the type of the rows."""
        signs = self._signs[rows.dtype]
        cut, wide = self._full * self.block, self._full * SIGNS_PER_ROW
        # Four dimensions, as of heads of attention: that layout is one which oneDNN does not copy.
        left = rows[:, :cut].reshape(1, len(rows), self._full, self.block).transpose(0, 2, 1, 3)
        target = out[:, :wide].reshape(1, len(rows), self._full, SIGNS_PER_ROW).transpose(0, 2, 1, 3)
        multiply(left, signs[:cut].reshape(1, self._full, self.block, SIGNS_PER_ROW), target)
        if self._rest:
            multiply(rows[:, cut:], signs[cut:], out[:, wide:])


@functools.lru_cache(maxsize=8)
def block_signs(width: int, columns: int, seed: tuple[int, ...]) -> tuple[BlockSigns, BlockSigns]:
    """Two of them, independent of each other. Layers of a stack may share them: each has an interval of its own."""
    rng = np.random.default_rng(seed)
    return BlockSigns(width, columns, rng), BlockSigns(width, columns, rng)


def _even_block(width: int, length: float) -> int | None:
    """The divisor of ``width`` nearest to ``length`` that whole tiles of a matrix unit make up, if one is near."""
    there = [block for block in range(_TILE, width + 1, _TILE) if width % block == 0]
    nearest = min(there, key=lambda block: abs(math.log(block / length)), default=None)
    return nearest if nearest is not None and abs(math.log(nearest / length)) < _NEAR else None
