"""Cases over several processes; one that dies or hangs is its case's verdict, and is started anew."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.fuzz.cases import make_case
from benchmarks.fuzz.inputs import Input, Seed
from benchmarks.fuzz.judging import Verdict
from benchmarks.fuzz.worker import serve

LIMIT_SECONDS = 10.0
"""Seconds of the processor that a case may take."""
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Plan:
    """What a run does: ``numbers`` of cases of ``run_seed``, negative ones being those of ``kept``."""

    numbers: Sequence[int]
    run_seed: int = 0
    only: tuple[str, ...] = ()
    kept: tuple[Input, ...] = ()
    workers: int = 2
    log: str = "/dev/null"
    idle_seconds: float = 180.0
    """Seconds without any use of the processor: a case waits for something that does not come. The process that tries
    shapes may take its five seconds of a busy machine meanwhile."""


def run_cases(plan: Plan, seeds: tuple[Seed, ...], tell: Callable[[Verdict], None]) -> None:
    """Run every case; ``tell`` is called with each verdict, from one thread at a time. What fails here fails the run:
    it would have fewer cases than were asked for."""
    numbers, lock = iter(plan.numbers), threading.Lock()

    def take() -> int | None:
        with lock:
            return next(numbers, None)

    def work() -> None:
        number = take()
        while number is not None:
            with _Worker(plan) as worker:
                while number is not None:
                    verdict = worker.answer(number)
                    with lock:
                        tell(verdict if isinstance(verdict, Verdict) else _lost(plan, seeds, number, verdict))
                    number = take()
                    if not isinstance(verdict, Verdict):
                        break

    with ThreadPoolExecutor(plan.workers) as pool:
        for done in [pool.submit(work) for _ in range(plan.workers)]:
            done.result()


def _lost(plan: Plan, seeds: tuple[Seed, ...], number: int, why: str) -> Verdict:
    """The verdict of a case that took its process with it."""
    chosen = tuple(seed for seed in seeds if not plan.only or seed.name in plan.only)
    made = plan.kept[-1 - number] if number < 0 else make_case(plan.run_seed, number, chosen)
    kind = "hang" if why.startswith("no answer") else "crash"
    return Verdict(number, made.seed, made.target, tuple(made.edits), kind, why, 0.0)


class _Worker:
    def __init__(self, plan: Plan) -> None:
        self._idle = plan.idle_seconds
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, plan.run_seed, plan.only, plan.kept, plan.log)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(_START_SECONDS):
            raise RuntimeError("a worker does not start")
        self._connection.recv()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def answer(self, number: int) -> Verdict | str:
        """The verdict of a case, or what became of the process."""
        self._connection.send(number)
        begin, moved = self._cpu_seconds(), time.monotonic()
        last = begin
        for _ in _until(self._connection):
            now = self._cpu_seconds()
            last, moved = (now, time.monotonic()) if now > last else (last, moved)
            # A busy machine gives a case little of the processor; one that waits for something takes none at all.
            if now - begin > LIMIT_SECONDS or time.monotonic() - moved > self._idle:
                self._process.kill()
                return f"no answer after {now - begin:.0f} s of the processor"
        try:
            found: Verdict = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return f"the process ended with {self._process.exitcode}"
        return found

    def _cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        # utime and stime, in ticks of a hundredth on every Linux.
        return (int(fields[11]) + int(fields[12])) / 100


def _until(connection: Connection) -> Iterator[None]:
    """Wake up now and then until there is something to receive."""
    while not connection.poll(0.5):
        yield
