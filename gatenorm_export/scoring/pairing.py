"""Work on layers in pairs: while one is computed the next one is read, and where both are there, both are computed."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from gatenorm_export.processor import usable_threads
from gatenorm_export.scoring.bfloat16_products import limit_threads

Result = TypeVar("Result")

# Two, so that reading overlaps with computing and never more than two layers are in memory. Layers side by side also
# keep two cores busier than one product on both: much of the work is converting, which numpy does on one core.
_WORKERS = 2


class StreamedLayer(Protocol):
    """One layer of a checkpoint."""

    @property
    def layer(self) -> int:
        """Its number."""

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Query and key weights. Called from other threads, one call at a time; again when the layer is looked at more
        closely."""

    def take_digest(self) -> None:
        """Note what identifies the weights that were just loaded; while others are loaded."""


Streamed = TypeVar("Streamed", bound=StreamedLayer)


def in_pairs(
    layers: Sequence[Streamed], work: Callable[[Streamed, threading.Lock], Result], *, alone: bool = False
) -> Iterator[tuple[int, Result]]:
    """``work(layer, lock)`` on each layer, two at a time, results in order; work holds the lock while it reads.

    ``alone`` is one at a time, with all cores for numpy's products.

    Raises:
        Exception: what ``work`` raised, for the first layer that it was raised for.
    """
    reading = threading.Lock()

    def one(streamed: Streamed) -> Result:
        return work(streamed, reading)

    if alone:
        for streamed in layers:
            yield streamed.layer, one(streamed)
        return
    waiting: deque[tuple[int, Future[Result]]] = deque()
    threads = max(1, usable_threads() // _WORKERS)
    workers = ThreadPoolExecutor(_WORKERS, "layers", initializer=limit_threads, initargs=(threads,))
    with blas_threads(threads), workers as pool:
        try:
            for streamed in layers:
                waiting.append((streamed.layer, pool.submit(one, streamed)))
                # One more than the workers waits its turn without being read, so that no worker is ever idle.
                if len(waiting) > _WORKERS:
                    layer, future = waiting.popleft()
                    yield layer, future.result()
            while waiting:
                layer, future = waiting.popleft()
                yield layer, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Hold numpy's BLAS to so many threads, where threadpoolctl is there to do it; without it, work only slows down."""
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        yield
        return
    with threadpool_limits(count, user_api="blas"):
        yield
