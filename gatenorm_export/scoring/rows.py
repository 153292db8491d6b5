"""A stored matrix as rows on their way through the cache: read, digested and handed out, one pass for all."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import xxhash

ROWS_AT_A_TIME = 32
"""Rows that are digested, or converted to float32, at once: they stay in cache."""


class Matrix(Protocol):
    """What a sketch needs of weights: an array, or :class:`Rows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    @property
    def ndim(self) -> int:
        """Two."""

    @property
    def dtype(self) -> np.dtype:
        """How values are stored."""

    def __len__(self) -> int:
        """Rows."""

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Some rows."""


class Rows:
    """A matrix whose bytes are digested as its rows are asked for, from the first to the last.

    ``values`` is as it is stored, mapped from a file where that can be: then rows are read, digested and used while
    they are in cache, and no pass over the whole tensor comes before.
    """

    ndim = 2

    def __init__(self, values: np.ndarray, *, window: int) -> None:
        """``window`` rows are digested before the first of them is handed out."""
        self.shape: tuple[int, ...] = values.shape
        self.dtype = values.dtype
        self._values: np.ndarray | None = values
        self._window, self._done = window, 0
        self._state = xxhash.xxh3_128()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice, /) -> np.ndarray:
        if self._values is None:
            raise ValueError("the rows were given back")
        start, stop, _ = part.indices(len(self))
        while self._done < stop:
            upto = min(self._done + self._window, len(self))
            self._state.update(self._values[self._done : upto].view(np.uint8).data)
            self._done = upto
        return self._values[start:stop]

    def release(self) -> None:
        """Give back the memory; the digest stays."""
        self._values = None

    @property
    def complete(self) -> bool:
        """Whether every row was asked for, so that there is a digest."""
        return self._done == len(self)

    @property
    def digest(self) -> str:
        """xxh3-128 of all bytes as they are stored, in hex, once every row was asked for."""
        if self._done < len(self):
            raise ValueError(f"only {self._done} of {len(self)} rows were read")
        return str(self._state.hexdigest())
