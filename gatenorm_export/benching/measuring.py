"""The measuring itself: load, warm up, time in turns or one after the other, within a time limit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from gatenorm_export.benching.failures import NoMemoryError, one_line
from gatenorm_export.benching.protocol import STEPS, Backend, BenchModel, Point, Side
from gatenorm_export.benching.statistics import Order
from gatenorm_export.progress import Progress
from gatenorm_export.records.bench import BenchSide, Clocks, MissingRow

WARM_UP = 2
"""Rounds that are not counted: the first call at a shape allocates, and may choose kernels."""

PAIRS = {"prefill": (6, 40), "decode": (32, 320)}
"""Fewest and most pairs of calls at a point, where their number is not given. Even, for pairs of both orders belong
together. A removed sublayer of thirty is about one per cent of a decode step, and single calls on a shared machine
scatter by ten, so decode needs many."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: ``repeats`` pairs at each point, or as many as fit ``seconds`` together."""

    repeats: int | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Limits:
    """What one point may take: pairs, where their number is given; else its share of the seconds that are left."""

    repeats: int | None
    rest: float
    share: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds [2, repeats] of each point that could be measured, and the reasons for the others."""

    seconds: dict[Point, np.ndarray]
    clocks: dict[Point, Clocks]
    missing: tuple[MissingRow, ...]
    sides: tuple[BenchSide, BenchSide]
    order: Order
    notes: tuple[str, ...] = ()


def measure(
    backend: Backend,
    sides: tuple[Side, Side],
    points: Sequence[Point],
    effort: Effort,
    order: Order,
    *,
    clocks: Callable[[], Clocks],
    progress: Progress,
) -> Measured:
    """Time both sides at every point.

    In "pairs" both are loaded and called in turn, the order changing from pair to pair; "apart" loads one, times it at
    every point, frees it and goes on with the other.

    Raises:
        RefusedError: the runtime failed; the text names where.
    """
    groups = (sides,) if order == "pairs" else ((sides[0],), (sides[1],))
    parts: list[dict[Point, np.ndarray]] = []
    seen: dict[Point, Clocks] = {}
    missing: dict[Point, str] = {}
    loaded: list[BenchSide] = []
    notes: list[str] = []
    for number, group in enumerate(groups, 1):
        models: list[BenchModel] = []
        try:
            for side in group:
                with progress.task(f"load {side.path}"):
                    model, record = _load(backend, side, points)
                models.append(model)
                loaded.append(record)
                notes += model.notes
            end = time.monotonic() + effort.seconds / len(groups)
            label = "time base and pruned in turns" if order == "pairs" else f"time {number} of 2"
            timed: dict[Point, np.ndarray] = {}
            with progress.task(label, total=len(points)) as bar:
                for place, point in enumerate(points):
                    if point not in missing:
                        rest = end - time.monotonic()
                        limits = _Limits(effort.repeats, rest, rest / (len(points) - place))
                        found = _point(backend.device.backend, models, point, limits)
                        if isinstance(found, str):
                            missing[point] = found
                        else:
                            timed[point] = found
                            seen[point] = clocks()
                    bar.advance()
            parts.append(timed)
        finally:
            for model in models:
                model.close()
    kept = [point for point in points if point not in missing]
    return Measured(
        seconds={point: _joined([part[point] for part in parts]) for point in kept},
        clocks={point: seen[point] for point in kept},
        missing=tuple(
            MissingRow(phase=p.phase, batch=p.batch, sequence=p.sequence, reason=missing[p])
            for p in points
            if p in missing
        ),
        sides=(loaded[0], loaded[1]),
        order=order,
        notes=tuple(dict.fromkeys(notes)),
    )


def decide_order(
    backend: Backend, sides: Sequence[Side], points: Sequence[Point], asked: Literal["auto", "alternate", "sequential"]
) -> tuple[Order, str]:
    """Whether memory holds both sides at once, by the sizes of their files and of the largest cache; and the reason.

    Caches count three times: that of the prefill, that of a step and that of the next one.
    """
    if asked != "auto":
        return ("pairs", "") if asked == "alternate" else ("apart", "asked for")
    tokens = max(point.batch * (point.sequence + STEPS) for point in points)
    need = sum(backend.weight_copies * side.file_bytes + 3 * side.kv_bytes_per_token * tokens for side in sides)
    free = backend.memory.available()
    if free is None or need <= free:
        return "pairs", ""
    return "apart", f"both together may take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


def _load(backend: Backend, side: Side, points: Sequence[Point]) -> tuple[BenchModel, BenchSide]:
    """Load one side and run it once at its largest point, where its memory and its cache are counted."""
    memory, name = backend.memory, backend.device.backend
    memory.begin()
    start = time.perf_counter()
    try:
        with one_line(name, f"loading {side.path}"):
            model = side.load()
            model.synchronise()
    except NoMemoryError as error:
        from gatenorm_export.errors import RefusedError

        raise RefusedError(f"{side.path}: {error}; a smaller model or another device is needed") from error
    seconds = time.perf_counter() - start
    peak, kv = None, None
    runnable = [point for point in points if model.refuses(point) is None]
    if runnable:
        largest = max(runnable, key=lambda point: point.batch * point.sequence)
        try:
            with one_line(name, largest.name):
                _prepare(model, largest)
                model.prefill()
                model.synchronise()
                kv = model.kv_bytes() / (largest.batch * largest.sequence) or None
                if largest.phase == "decode":
                    model.decode()
                    model.synchronise()
            peak = memory.peak()
        except NoMemoryError:
            # Which points fit shows when each is measured.
            peak = None
        except BaseException:
            model.close()
            raise
    return model, BenchSide(
        path=side.path,
        sha256=side.sha256,
        file_bytes=side.file_bytes,
        load_seconds=seconds,
        peak_memory_bytes=peak,
        kv_bytes_per_token=kv,
        work=side.work,
    )


def _prepare(model: BenchModel, point: Point) -> None:
    # Any tokens do: the time of a dense decoder does not depend on which they are.
    row = np.arange(point.sequence, dtype=np.int64) % 97 + 3
    model.prepare(np.tile(row, (point.batch, 1)), STEPS if point.phase == "decode" else 0)


def _point(backend: str, models: Sequence[BenchModel], point: Point, limits: _Limits) -> np.ndarray | str:
    """Seconds [models, repeats] at one point, or why there are none."""
    refused = next((why for why in (model.refuses(point) for model in models) if why is not None), None)
    if refused is not None:
        return refused
    try:
        with one_line(backend, point.name):
            for model in models:
                _prepare(model, point)
            if point.phase == "decode":
                for model in models:
                    model.prefill()
            warm = np.array([_round(models, point, place) for place in range(WARM_UP)])
            fewest, most = PAIRS[point.phase]
            seconds = max(float(warm[-1].sum()), 1e-9)
            # A long prefill may take more than its share, but not what is left for all.
            if limits.repeats is None and fewest * seconds > limits.rest:
                return f"--max-minutes was used up: {fewest} pairs of calls take {fewest * seconds:.0f} s"
            fit = 2 * int(min(max(limits.share / seconds, fewest), most) / 2)
            pairs = limits.repeats if limits.repeats is not None else fit
            return np.array([_round(models, point, place) for place in range(pairs)]).T
    except NoMemoryError as error:
        return str(error)


def _round(models: Sequence[BenchModel], point: Point, place: int) -> np.ndarray:
    """Seconds [models] of one call of each, in an order that changes from round to round."""
    seconds = np.zeros(len(models))
    for which in range(len(models)) if place % 2 == 0 else reversed(range(len(models))):
        model = models[which]
        if point.phase == "decode" and place % STEPS == 0:
            model.rewind()
        seconds[which] = model.timed(model.prefill if point.phase == "prefill" else model.decode)
    return seconds


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[2, repeats]: of two that were measured apart, as many calls as both have."""
    if len(parts) == 1:
        return parts[0]
    repeats = min(part.shape[1] for part in parts)
    return np.concatenate([part[:, :repeats] for part in parts])
