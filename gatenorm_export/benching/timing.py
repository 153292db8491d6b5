"""Loaded models at one point: what they need is put on the device, then they are warmed up and timed in turns."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from gatenorm_export.benching.failures import NoMemoryError, one_line
from gatenorm_export.benching.protocol import STEPS, Backend, BenchModel, Point, Side
from gatenorm_export.errors import RefusedError
from gatenorm_export.records.base import Part

WARM_UP = 2
"""Rounds that are not counted: the first call at a shape allocates, and may choose kernels."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one point may take: ``repeats`` pairs, where their number is given; else its ``share`` of the seconds that
    are left, within ``bounds``."""

    repeats: int | None
    rest: float
    share: float
    bounds: tuple[int, int]


class Loaded(Part):
    """What loading a model showed; see ``BenchSide``."""

    load_seconds: float
    peak_memory_bytes: int | None
    kv_bytes_per_token: float | None
    notes: tuple[str, ...]


def load(backend: Backend, side: Side, points: Sequence[Point]) -> tuple[BenchModel, Loaded]:
    """Load one side and run it once at its largest point, where its memory and its cache are counted.

    Raises:
        RefusedError: the runtime failed, or memory does not hold the model.
    """
    memory, name = backend.memory, backend.device.backend
    memory.begin()
    start = time.perf_counter()
    try:
        with one_line(name, f"loading {side.path}"):
            model = side.load()
            model.synchronise()
    except NoMemoryError as error:
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
    return model, Loaded(load_seconds=seconds, peak_memory_bytes=peak, kv_bytes_per_token=kv, notes=model.notes)


def time_point(backend: str, models: Sequence[BenchModel], point: Point, limits: Limits) -> np.ndarray | str:
    """Seconds [models, repeats] at one point, or why there are none.

    Raises:
        RefusedError: the runtime failed.
    """
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
            fewest, most = limits.bounds
            seconds = max(float(warm[-1].sum()), 1e-9)
            # A long prefill may take more than its share, but not what is left for all.
            if limits.repeats is None and fewest * seconds > limits.rest:
                return (
                    f"--max-minutes was used up: {fewest} pairs of calls take {_duration(fewest * seconds)}, and "
                    f"{_duration(max(limits.rest, 0.0))} are left"
                )
            fit = 2 * int(min(max(limits.share / seconds, fewest), most) / 2)
            pairs = limits.repeats if limits.repeats is not None else fit
            return np.array([_round(models, point, place) for place in range(pairs)]).T
    except NoMemoryError as error:
        return str(error)


def _prepare(model: BenchModel, point: Point) -> None:
    # Any tokens do: the time of a dense decoder does not depend on which they are.
    row = np.arange(point.sequence, dtype=np.int64) % 97 + 3
    model.prepare(np.tile(row, (point.batch, 1)), STEPS if point.phase == "decode" else 0)


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1e3 * seconds:,.1f} ms"


def _round(models: Sequence[BenchModel], point: Point, place: int) -> np.ndarray:
    """Seconds [models] of one call of each, in an order that changes from round to round."""
    seconds = np.zeros(len(models))
    for which in range(len(models)) if place % 2 == 0 else reversed(range(len(models))):
        model = models[which]
        if point.phase == "decode" and place % STEPS == 0:
            model.rewind()
        seconds[which] = model.timed(model.prefill if point.phase == "prefill" else model.decode)
    return seconds
