"""Seconds of a call: by the wall clock on the CPU, by CUDA events around it on a GPU's stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """A way to time calls."""

    name: str

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds that ``call`` takes, everything it started included."""

    def synchronise(self) -> None:
        """Wait for everything that was started."""


class WallClock:
    """For calls that are done when they return, and for those that ``wait`` waits for."""

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        self._wait = wait
        self.name = "wall clock" if wait is None else "wall clock, synchronised"

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds of the wall."""
        self.synchronise()
        start = time.perf_counter()
        call()
        self.synchronise()
        return time.perf_counter() - start

    def synchronise(self) -> None:
        """Wait, where there is anything to wait for."""
        if self._wait is not None:
            self._wait()


class CudaEvents:
    """Events of torch on one stream. The stream is empty when a call begins, so launching is in the time."""

    name = "CUDA events"

    def __init__(self, stream: Any) -> None:
        import torch

        self._stream = stream
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds between the two events around the call."""
        self._stream.synchronize()
        self._start.record(self._stream)
        call()
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()
