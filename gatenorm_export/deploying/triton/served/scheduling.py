"""Who is computed when: one thread that advances every running generation by a step in turn."""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence

from gatenorm_export.deploying.triton.served.generation import Generation, Row


class BusyError(RuntimeError):
    """No more can wait; the text is for the client."""


class ClosedError(RuntimeError):
    """The model is being unloaded; the text is for the client."""


@dataclasses.dataclass(frozen=True)
class Places:
    """How many prompts are decoded in one batch, how many such batches run in turn, and how many prompts wait while
    they do."""

    batch: int
    running: int
    waiting: int


@dataclasses.dataclass(frozen=True)
class Drain:
    """``served`` tells whether the server still takes requests for the model. Once it does not, what is under way may
    go on for ``seconds``, and gets an error then; the server itself would cut it off without a word."""

    served: Callable[[], bool]
    seconds: float


class Scheduler:
    """Runs generations. ``begin`` makes one of rows that have waited."""

    def __init__(self, places: Places, begin: Callable[[Sequence[Row]], Generation], drain: Drain) -> None:
        self._places, self._begin, self._drain = places, begin, drain
        self._looked, self._ends_at = 0.0, math.inf
        self._waiting: collections.deque[Row] = collections.deque()
        self._n_running = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="generation", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        """Let a row wait for its turn.

        Raises:
            BusyError: too many wait already.
            ClosedError: the model is being unloaded.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the model is being unloaded")
            # What a free place will take in a moment, when the thread comes to it, does not wait.
            free = self._places.batch * (self._places.running - self._n_running)
            if len(self._waiting) >= self._places.waiting + free:
                raise BusyError(f"{len(self._waiting)} requests are waiting already; try again later")
            self._waiting.append(row)
            self._changed.notify()

    def close(self) -> None:
        """End: what runs or waits gets an error, and the thread ends behind the step that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        running: list[Generation] = []
        while True:
            with self._changed:
                while not (self._closed or running or self._waiting):
                    self._changed.wait()
                if self._closed:
                    break
                batches = self._next_batches(self._places.running - len(running))
                self._n_running = len(running) + len(batches)
            running += [generation for rows in batches if (generation := self._begun(rows)) is not None]
            running = [generation for generation in running if _advanced(generation)]
            if self._drained():
                self._end(running)
                running = []
            with self._changed:
                self._n_running = len(running)
        self._end(running)

    def _drained(self) -> bool:
        """Whether the time of what is under way is over. Looked at once a second: the answer is the server's."""
        now = time.monotonic()
        if now - self._looked >= 1.0:
            self._looked = now
            if self._ends_at == math.inf and not self._drain.served():
                self._ends_at = now + self._drain.seconds
        return now >= self._ends_at

    def _end(self, running: Sequence[Generation]) -> None:
        for generation in running:
            generation.fail("the server is shutting down; the answer is not complete")
        with self._changed:
            while self._waiting:
                self._waiting.popleft().fail("the server is shutting down; the request was not begun")

    def _begun(self, rows: Sequence[Row]) -> Generation | None:
        try:
            return self._begin(rows)
        except Exception as error:
            for row in rows:
                row.fail(f"{type(error).__name__}: {error}")
            return None

    def _next_batches(self, free: int) -> list[list[Row]]:
        batches: list[list[Row]] = []
        while self._waiting and len(batches) < free:
            batches.append([self._waiting.popleft() for _ in range(min(self._places.batch, len(self._waiting)))])
        return batches


def _advanced(generation: Generation) -> bool:
    """Whether there is more to do. An error ends this generation and no other."""
    try:
        return generation.advance()
    except Exception as error:
        generation.fail(f"{type(error).__name__}: {error}")
        return False
