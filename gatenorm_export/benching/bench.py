"""One measurement from beginning to end: two models, their ratio, the roofline, a control, and a verdict."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gatenorm_export.benching.clocks import busy, read_clocks
from gatenorm_export.benching.control import hold_against
from gatenorm_export.benching.failures import one_line
from gatenorm_export.benching.measuring import Effort, Measured, decide_order, measure
from gatenorm_export.benching.protocol import STEPS, Backend, Pair, Point
from gatenorm_export.benching.roofline import roofline_row
from gatenorm_export.benching.statistics import speedup_of, timing_of
from gatenorm_export.benching.words import verdict
from gatenorm_export.errors import InputError
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records.bench import (
    BenchReport,
    BenchRow,
    Clocks,
    Control,
    Phase,
    Probe,
    Speedup,
)

OrderName = Literal["auto", "alternate", "sequential"]
MAX_MINUTES = 5.0


@dataclasses.dataclass(frozen=True)
class BenchRequest:
    """What to measure: every phase at every batch and length. ``sequences`` empty are the backend's own.

    ``repeats`` None takes as many pairs of calls as fit ``max_minutes`` together.
    """

    batches: tuple[int, ...] = (1,)
    sequences: tuple[int, ...] = ()
    repeats: int | None = None
    max_minutes: float = MAX_MINUTES
    order: OrderName = "auto"
    control: Path | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for option, values in (("--batch", self.batches), ("--sequence", self.sequences)):
            if any(value < 1 for value in values):
                raise InputError(f"{option}: lengths start at 1")
            if len(set(values)) < len(values):
                raise InputError(f"{option}: a number is named twice; name it once")
        if self.repeats is not None and (self.repeats < 2 or self.repeats % 2):
            raise InputError(
                f"--repeats {self.repeats}: give an even number from 2 on; calls are paired in both orders"
            )
        if not 0 < self.max_minutes < float("inf"):
            raise InputError(f"--max-minutes {self.max_minutes:g}: give a number of minutes above 0")


def run_bench(backend: Backend, pair: Pair, request: BenchRequest, *, progress: Progress | None = None) -> BenchReport:
    """Measure ``pair`` on ``backend``.

    Raises:
        RefusedError: the runtime failed in the middle; nothing is kept.
    """
    progress = progress or Quiet()
    points = bench_points(backend, pair, request)
    gpu = 0 if backend.device.driver is not None else None
    before = read_clocks(gpu=gpu)
    # A control is a second measurement of the same points.
    effort = Effort(request.repeats, 60 * request.max_minutes / (2 if request.control is not None else 1))
    sides = (pair.base, pair.pruned)
    order, reason = decide_order(backend, sides, points, request.order)
    probe, no_roofline = _probe(backend, pair, progress)
    measured = measure(backend, sides, points, effort, order, clocks=lambda: read_clocks(gpu=gpu), progress=progress)
    control = None
    if request.control is not None:
        control = run_control(backend, pair, request.control, points, effort, request.order, progress=progress)
    rows = bench_rows(measured, pair, probe)
    notes = [*pair.notes, *measured.notes]
    loaded = busy(before, backend.device.threads)
    if loaded is not None:
        notes.append(loaded)
    report = BenchReport(
        command=request.command,
        device=backend.device,
        base=measured.sides[0],
        pruned=measured.sides[1],
        plan_sha256=pair.plan_sha256,
        n_layers=pair.n_layers,
        dropped=pair.dropped,
        alternating=order == "pairs",
        order_reason=reason,
        rows=rows,
        missing=measured.missing,
        speedups=_speedups(measured),
        probe=probe,
        roofline_reason=no_roofline,
        clocks_before=before,
        clocks_after=read_clocks(gpu=gpu),
        control=control,
        notes=tuple(notes),
        verdict="",
    )
    return report.model_copy(update={"verdict": verdict(report)})


def run_control(
    backend: Backend,
    pair: Pair,
    native: Path,
    points: Sequence[Point],
    effort: Effort,
    order: OrderName = "auto",
    *,
    progress: Progress,
) -> Control:
    """Time the pruned model of ``pair`` and ``native``, a model made without those layers, in turns.

    Raises:
        InputError: ``native`` is nothing that the backend runs.
        RefusedError: the runtime failed, or no point could be measured.
    """
    sides = (backend.control(native, pair), pair.pruned)
    chosen, _ = decide_order(backend, sides, points, order)
    gpu = 0 if backend.device.driver is not None else None
    found = measure(backend, sides, points, effort, chosen, clocks=lambda: read_clocks(gpu=gpu), progress=progress)
    return hold_against(found, *sides)


def bench_points(backend: Backend, pair: Pair, request: BenchRequest) -> list[Point]:
    """All prefills, then all decodes. Default lengths stop where the model's context does."""
    sequences = request.sequences
    if not sequences:
        most = pair.longest - STEPS if pair.longest is not None else max(backend.sequences)
        sequences = tuple(length for length in backend.sequences if length <= most) or (max(most // 2, 1),)
    phases: tuple[Phase, ...] = ("prefill", "decode")
    return [Point(*found) for found in itertools.product(phases, request.batches, sequences)]


def bench_rows(measured: Measured, pair: Pair, probe: Probe | None) -> tuple[BenchRow, ...]:
    """Seconds as rows, with the roofline where both models' work is known."""
    rows = []
    for point, seconds in measured.seconds.items():
        speedup, low, high = speedup_of(seconds, order=measured.order)
        works = pair.base.work, pair.pruned.work
        roofline = None
        if probe is not None and works[0] is not None and works[1] is not None:
            roofline = roofline_row(works[0], works[1], probe, point, (speedup, low, high))
        rows.append(
            BenchRow(
                phase=point.phase,
                batch=point.batch,
                sequence=point.sequence,
                steps=STEPS if point.phase == "decode" else 1,
                repeats=seconds.shape[1],
                base=timing_of(seconds[0], point.tokens),
                pruned=timing_of(seconds[1], point.tokens),
                speedup=speedup,
                speedup_low=low,
                speedup_high=high,
                roofline=roofline,
                clocks=measured.clocks.get(point, Clocks()),
            )
        )
    return tuple(rows)


def _speedups(measured: Measured) -> tuple[Speedup, ...]:
    found = []
    phases: Sequence[Phase] = ("prefill", "decode")
    for phase in phases:
        parts = [seconds for point, seconds in measured.seconds.items() if point.phase == phase]
        if parts:
            middle, low, high = speedup_of(*parts, order=measured.order)
            found.append(Speedup(phase=phase, speedup=middle, low=low, high=high))
    return tuple(found)


def _probe(backend: Backend, pair: Pair, progress: Progress) -> tuple[Probe | None, str | None]:
    """The device's rates, or why no roofline is drawn."""
    if pair.base.work is None or pair.pruned.work is None:
        return None, pair.base.why_no_work or pair.pruned.why_no_work
    with progress.task("probe the device"), one_line(backend.device.backend, "the probe of the device's rates"):
        return backend.probe(pair.base.work), None
