"""A stored matrix as rows on their way through the cache: read, digested, handed out, and never held as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
import xxhash

# Few enough that what was just read is digested and converted while it is in cache.
_BYTES_AT_A_TIME = 1 << 20


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
    """A matrix that is read once, from the first row to the last.

    Rows come in windows of ``window``, and only rows of the current window or of the next one can be asked for. What
    was handed out is overwritten by the next window.
    """

    ndim = 2

    def __init__(
        self,
        read: Callable[[int, int], np.ndarray],
        shape: tuple[int, int],
        dtype: np.dtype,
        *,
        window: int,
        lock: threading.Lock,
    ) -> None:
        """``read(start, stop)`` gives rows as they are stored; ``lock`` is held around each call."""
        self._read, self._lock, self._window = read, lock, window
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._start = self._stop = 0
        self._rows: np.ndarray = np.empty((0, shape[1]), dtype)
        self._state = xxhash.xxh3_128()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice, /) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        if start == self._stop < len(self):
            self._advance()
        if not self._start <= start <= stop <= self._stop:
            raise IndexError(f"rows {start} to {stop} are not in the window of {self._start} to {self._stop}")
        return self._rows[start - self._start : stop - self._start]

    def release(self) -> None:
        """Give back the window's memory; the digest stays."""
        self._rows = self._rows[:0].copy()

    @property
    def digest(self) -> str:
        """xxh3-128 of all bytes as they are stored, in hex, once every row was read."""
        if self._stop < len(self):
            raise ValueError(f"only {self._stop} of {len(self)} rows were read")
        return str(self._state.hexdigest())

    def _advance(self) -> None:
        self._start, self._stop = self._stop, min(self._stop + self._window, len(self))
        step = max(1, _BYTES_AT_A_TIME // max(self.shape[1] * self.dtype.itemsize, 1))
        if self._stop - self._start <= step:
            self._rows = self._piece(self._start, self._stop)
            return
        if len(self._rows) != self._stop - self._start:
            self._rows = np.empty((self._stop - self._start, self.shape[1]), self.dtype)
        for start in range(self._start, self._stop, step):
            stop = min(start + step, self._stop)
            self._rows[start - self._start : stop - self._start] = self._piece(start, stop)

    def _piece(self, start: int, stop: int) -> np.ndarray:
        with self._lock:
            piece = self._read(start, stop)
        self._state.update(piece.view(np.uint8).data)
        return piece
