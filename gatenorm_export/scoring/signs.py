"""Random sign matrices that cost little more to multiply by than the rows cost to read."""

from __future__ import annotations

import functools
import math

import numpy as np

from gatenorm_export.scoring.bfloat16_products import BFLOAT16, Multiply

SIGNS_PER_ROW = 32
"""Columns of a block: independent signs for each dimension. What they vary by is told by their pairs, nearly 500."""

# Rows of a tile of AMX in pairs, and how far, by a factor of e to that, a block's length may be from what was asked.
_TILE, _NEAR = 32, 0.5
# Of rows that blocks do not divide.
_FILLED_ROWS = 128


class BlockSigns:
    """A random matrix F [width, columns], block diagonal, of signs: E[F F^T] = SIGNS_PER_ROW I.

    All blocks hold the same signs: no column has rows of two blocks, so the mean does not care, and rows of weights are
    projected as one product of rows as long as a block.
    """

    def __init__(self, width: int, columns: int, rng: np.random.Generator) -> None:
        """About ``columns`` of them: as many as blocks of one length make, a divisor of the width where one is near."""
        blocks = max(1, min(columns // SIGNS_PER_ROW, width // SIGNS_PER_ROW))
        self.block = _even_block(width, width / blocks) or width // blocks
        self._full = width // self.block
        self._rest = width - self._full * self.block
        self.columns = (self._full + (self._rest > 0)) * SIGNS_PER_ROW
        signs = 2.0 * rng.integers(0, 2, (self.block, SIGNS_PER_ROW), dtype=np.int8) - 1
        # How often each row of a block is there.
        times = np.full(self.block, self._full) + (np.arange(self.block) < self._rest)
        self._overlap = (signs.T * times) @ signs / (width * SIGNS_PER_ROW)
        self._signs = {dtype: signs.astype(dtype) for dtype in (np.dtype(np.float32), BFLOAT16)}

    def form(self, small: np.ndarray) -> tuple[float, float]:
        """What a matrix [columns, m] that was projected, and divided by the root of SIGNS_PER_ROW, tells of the form in
        these signs, the sum S of the blocks S_b without its diagonal: ||S||_F^2, and its largest eigenvalue.

        (z^T S z')^2 of two different columns has the mean ||S||_F^2, diagonal and all. What signs do not vary by may be
        taken off before: a multiple of the identity of which the trace says how much of the diagonal it is. The matrix
        of all z^T S z' has the largest eigenvalue of S as its own where that is most of S, and a larger one else.
        """
        blocks = small.reshape(-1, SIGNS_PER_ROW, small.shape[1])
        gram = np.matmul(blocks, blocks.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
        pairs = gram - gram.trace() * self._overlap
        np.fill_diagonal(pairs, 0.0)
        pairs *= SIGNS_PER_ROW / (SIGNS_PER_ROW - 1)
        squared = float(np.vdot(pairs, pairs)) * (SIGNS_PER_ROW - 1) / SIGNS_PER_ROW
        return squared, float(np.abs(np.linalg.eigvalsh(pairs)).max()) if math.isfinite(squared) else math.nan

    def project(self, rows: np.ndarray, out: np.ndarray, multiply: Multiply = np.matmul) -> None:
        """rows [n, width] times the matrix, into ``out`` [n, columns]; ``multiply`` takes the type of the rows."""
        signs = self._signs[rows.dtype]
        if not self._rest:
            multiply(rows.reshape(-1, self.block), signs, out.reshape(-1, SIGNS_PER_ROW))
            return
        # Whole blocks only: the last one is filled up with zeros, a few rows at a time, which stay in cache.
        count = self.columns // SIGNS_PER_ROW
        filled = np.zeros((min(_FILLED_ROWS, max(len(rows), 1)), count * self.block), rows.dtype)
        for start in range(0, len(rows), len(filled)):
            part = slice(start, min(start + len(filled), len(rows)))
            left = filled[: part.stop - start]
            left[:, : rows.shape[1]] = rows[part]
            multiply(left.reshape(-1, self.block), signs, out[part].reshape(-1, SIGNS_PER_ROW))


@functools.lru_cache(maxsize=8)
def block_signs(width: int, columns: int, seed: tuple[int, ...]) -> tuple[BlockSigns, BlockSigns]:
    """Two of them, independent of each other. Layers of a stack may share them: each has an interval of its own."""
    rng = np.random.default_rng(seed)
    return BlockSigns(width, columns, rng), BlockSigns(width, columns, rng)


def _even_block(width: int, length: float) -> int | None:
    """The divisor of ``width`` nearest to ``length``, if one is near; rather one that whole tiles of a matrix unit make
    up."""
    for step in (_TILE, 1):
        there = [block for block in range(step, width + 1, step) if width % block == 0]
        nearest = min(there, key=lambda block: abs(math.log(block / length)), default=None)
        if nearest is not None and abs(math.log(nearest / length)) < _NEAR:
            return nearest
    return None
