"""The measuring itself: load, time in turns or one after the other within a time limit, load again the other way round.

Which of two models is loaded first moves their ratio: of two sessions of one file the first was 1 to 5 % slower where
free memory lay in pieces. Linux hands out the smallest pieces first, so the first model's pages lie scattered and the
second's in longer runs. (In pages of 2 MB the two were equal.) So both are loaded as often in one order as in the
other, and the ratios of all loadings are averaged.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from gatenorm_export.benching.clocks import device_clocks
from gatenorm_export.benching.kept_timings import KeptTimings, TimedPoint
from gatenorm_export.benching.protocol import Backend, BenchModel, Point, Side
from gatenorm_export.benching.room import without_room
from gatenorm_export.benching.statistics import Order
from gatenorm_export.benching.timing import Limits, Loaded, load, time_point
from gatenorm_export.progress import Progress
from gatenorm_export.records.bench import BenchSide, Clocks, MissingRow

PAIRS = {"prefill": (8, 40), "decode": (32, 320)}
"""Fewest and most pairs of calls at a point, all loadings together, where their number is not given. A removed sublayer
of thirty is about one per cent of a decode step, and single calls on a shared machine scatter by ten, so decode needs
many."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: ``repeats`` pairs at each point, or as many as fit ``seconds`` together."""

    repeats: int | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of each point that could be measured, [2, repeats] for each loading, and the reasons for the others.

    Loadings alternate: the first side first, the second side first. Measured apart there is one array.
    """

    seconds: dict[Point, tuple[np.ndarray, ...]]
    clocks: dict[Point, Clocks]
    missing: tuple[MissingRow, ...]
    sides: tuple[BenchSide, BenchSide]
    order: Order
    loadings: int
    notes: tuple[str, ...] = ()


def measure(
    backend: Backend,
    sides: tuple[Side, Side],
    points: Sequence[Point],
    effort: Effort,
    order: Order,
    *,
    progress: Progress,
    kept: KeptTimings | None = None,
    what: str = "pair",
) -> Measured:
    """Time both sides at every point.

    In "pairs" both are loaded and called in turn, the order changing from pair to pair, and all of it again at each of
    the backend's loadings, whose order alternates too; "apart" loads one, times it at every point, frees it and goes
    on with the other. What ``kept`` has of ``what`` is not measured again.

    Raises:
        RefusedError: the runtime failed; the text names where. Or memory holds none of the points.
        OutputError: what was measured cannot be kept.
    """
    kept = kept or KeptTimings()
    groups = loading_groups(backend, order)
    run = _Run(backend, sides, points, effort, order, kept, what, progress)
    run.leave_out_what_does_not_fit(groups)
    parts = [run.loading(number, groups) for number in range(len(groups))]
    left = [point for point in points if point not in run.missing]
    loaded: tuple[list[Loaded], list[Loaded]] = ([], [])
    for group, (shown, _) in zip(groups, parts, strict=True):
        for which, found in zip(group, shown, strict=True):
            loaded[which].append(found)
    seconds = {}
    for point in left:
        arrays = [timed[point].array for _, timed in parts]
        if order == "pairs":
            # Rows are those of the first side and the second, whichever was loaded first.
            seconds[point] = tuple(array[list(group)] for array, group in zip(arrays, groups, strict=True))
        else:
            seconds[point] = (_joined(arrays),)
    return Measured(
        seconds=seconds,
        clocks={point: parts[-1][1][point].clocks for point in left},
        missing=tuple(
            MissingRow(phase=p.phase, batch=p.batch, sequence=p.sequence, reason=run.missing[p])
            for p in points
            if p in run.missing
        ),
        sides=(_side(sides[0], loaded[0]), _side(sides[1], loaded[1])),
        order=order,
        loadings=len(groups) if order == "pairs" else 1,
        notes=tuple(dict.fromkeys(note for shown, _ in parts for found in shown for note in found.notes)),
    )


@dataclasses.dataclass
class _Run:
    """One measurement under way; ``missing`` is why points cannot be measured, which one loading finds for all."""

    backend: Backend
    sides: tuple[Side, Side]
    points: Sequence[Point]
    effort: Effort
    order: Order
    kept: KeptTimings
    what: str
    progress: Progress
    missing: dict[Point, str] = dataclasses.field(default_factory=dict)

    def leave_out_what_does_not_fit(self, groups: Sequence[tuple[int, ...]]) -> None:
        """Find the points that memory does not hold; what was measured before did fit."""
        what = f"{self.what} {self.order}"
        new = [
            point
            for point in self.points
            if any(self.kept.point(what, number, point, len(group)) is None for number, group in enumerate(groups))
        ]
        self.missing |= without_room(self.backend, self.sides, new, self.order)

    def loading(
        self, number: int, groups: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[Loaded, ...], dict[Point, TimedPoint]]:
        """What one loading showed of its models, in their order of loading, and its points; kept ones as they are."""
        group, what = groups[number], f"{self.what} {self.order}"
        found = {point: self.kept.point(what, number, point, len(group)) for point in self.points}
        timed = {point: kept for point, kept in found.items() if kept is not None}
        shown = self.kept.loaded(what, number, len(group))
        if shown is not None and all(point in timed or point in self.missing for point in self.points):
            return shown, timed
        models: list[BenchModel] = []
        try:
            records = []
            for which in group:
                with self.progress.task(f"load {self.sides[which].path}"):
                    fitting = [point for point in self.points if point not in self.missing]
                    model, record = load(self.backend, self.sides[which], fitting)
                models.append(model)
                records.append(record)
            shown = tuple(records)
            self.kept.put_loaded(what, number, shown)
            spent = sum(float(kept.array.sum()) for kept in timed.values())
            end = time.monotonic() + self.effort.seconds / len(groups) - spent
            label = "time base and pruned in turns" if self.order == "pairs" else "time one after the other"
            with self.progress.task(f"{label}, {number + 1} of {len(groups)}", total=len(self.points)) as bar:
                for place, point in enumerate(self.points):
                    if point not in timed and point not in self.missing:
                        to_come = sum(other not in timed for other in self.points[place:])
                        taken = self._point(models, point, end - time.monotonic(), to_come)
                        if isinstance(taken, str):
                            self.missing[point] = taken
                        else:
                            timed[point] = TimedPoint(seconds=taken.tolist(), clocks=device_clocks(self.backend.device))
                            self.kept.put_point(what, number, point, timed[point])
                    bar.advance()
        finally:
            for model in models:
                model.close()
        return shown, timed

    def _point(self, models: Sequence[BenchModel], point: Point, rest: float, to_come: int) -> np.ndarray | str:
        parts = self.backend.loadings if self.order == "pairs" else 1
        repeats = self.effort.repeats // parts if self.effort.repeats is not None else None
        fewest, most = PAIRS[point.phase]
        limits = Limits(repeats, rest, rest / to_come, (max(fewest // parts, 2), most // parts))
        return time_point(self.backend.device.backend, models, point, limits)


def loading_groups(backend: Backend, order: Order) -> list[tuple[int, ...]]:
    """For each loading the sides that are loaded, in their order."""
    return [(0, 1), (1, 0)] * (backend.loadings // 2) if order == "pairs" else [(0,), (1,)]


def _side(side: Side, loaded: Sequence[Loaded]) -> BenchSide:
    """Of several loadings the shortest time, since the first reads the disk, and the highest peak, since a later one
    finds memory that the process still holds."""
    peaks = [found.peak_memory_bytes for found in loaded if found.peak_memory_bytes is not None]
    return BenchSide(
        path=side.path,
        sha256=side.sha256,
        file_bytes=side.file_bytes,
        load_seconds=min(found.load_seconds for found in loaded),
        peak_memory_bytes=max(peaks) if peaks else None,
        kv_bytes_per_token=loaded[0].kv_bytes_per_token,
        work=side.work,
    )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[2, repeats] of two that were measured apart, as many calls as both have."""
    repeats = min(part.shape[1] for part in parts)
    return np.concatenate([part[:, :repeats] for part in parts])
