"""One measurement from beginning to end: two models, their ratio, the roofline, a control, and a verdict."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatenorm_export.benching.clocks import busy, device_clocks
from gatenorm_export.benching.control import hold_against
from gatenorm_export.benching.failures import one_line
from gatenorm_export.benching.kept_timings import KeptTimings
from gatenorm_export.benching.measuring import Effort, Measured, loading_groups, measure
from gatenorm_export.benching.protocol import LOADINGS, STEPS, Backend, Pair, Point, Side
from gatenorm_export.benching.roofline import roofline_row
from gatenorm_export.benching.room import decide_order
from gatenorm_export.benching.statistics import Order, speedup_of, timing_of
from gatenorm_export.benching.words import verdict
from gatenorm_export.errors import RefusedError, UsageError
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
                raise UsageError(f"{option}: lengths start at 1")
            if len(set(values)) < len(values):
                raise UsageError(f"{option}: a number is named twice; name it once")
        if self.repeats is not None and (self.repeats < 1 or self.repeats % (2 * LOADINGS)):
            raise UsageError(
                f"--repeats {self.repeats}: give a multiple of {2 * LOADINGS}; calls are paired in both orders, at "
                f"{LOADINGS} loadings of the models"
            )
        if not 0 < self.max_minutes < float("inf"):
            raise UsageError(f"--max-minutes {self.max_minutes:g}: give a number of minutes above 0")


def run_bench(
    backend: Backend,
    pair: Pair,
    request: BenchRequest,
    *,
    kept_at: Path | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure ``pair`` on ``backend``.

    What was measured is kept in the file ``kept_at``, so that the same call goes on there; whoever has written the
    report removes it.

    Raises:
        RefusedError: a length passes the model's table of positions, the control is the pruned model itself, memory
            holds none of the points, or the runtime failed in the middle.
        OutputError: ``kept_at`` cannot be written.
    """
    progress = progress or Quiet()
    points = bench_points(backend, pair, request)
    before = device_clocks(backend.device)
    # A control is a second measurement of the same points.
    effort = Effort(request.repeats, 60 * request.max_minutes / (2 if request.control is not None else 1))
    sides = (pair.base, pair.pruned)
    order, reason = decide_order(backend, sides, points, request.order)
    native = _native(backend, request.control, pair) if request.control is not None else None
    kept = KeptTimings(kept_at, *_decides(backend, pair, native, points, request, order))
    if kept.n_points:
        of_each = len(loading_groups(backend, order)) * (1 if native is None else 2)
        progress.say(f"{kept.n_points} of {of_each * len(points)} timings were made before; going on")
    probe, no_roofline = _probe(backend, pair, kept, progress)
    measured = measure(backend, sides, points, effort, order, progress=progress, kept=kept)
    control = None
    if native is not None:
        control = run_control(backend, pair, native, points, effort, request.order, progress=progress, kept=kept)
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
        loadings=measured.loadings,
        order_reason=reason,
        rows=rows,
        missing=measured.missing,
        speedups=_speedups(measured),
        probe=probe,
        roofline_reason=no_roofline,
        clocks_before=before,
        clocks_after=device_clocks(backend.device),
        control=control,
        notes=tuple(notes),
        verdict="",
    )
    return report.model_copy(update={"verdict": verdict(report)})


def run_control(
    backend: Backend,
    pair: Pair,
    native: Side,
    points: Sequence[Point],
    effort: Effort,
    order: OrderName = "auto",
    *,
    progress: Progress,
    kept: KeptTimings | None = None,
) -> Control:
    """Time the pruned model of ``pair`` and ``native``, a model made without those layers, in turns.

    Raises:
        RefusedError: the runtime failed, or no point could be measured.
        OutputError: see :func:`run_bench`.
    """
    sides = (native, pair.pruned)
    chosen, _ = decide_order(backend, sides, points, order)
    found = measure(backend, sides, points, effort, chosen, progress=progress, kept=kept, what="control")
    return hold_against(found, *sides)


def bench_points(backend: Backend, pair: Pair, request: BenchRequest) -> list[Point]:
    """All prefills, then all decodes. Default lengths stop where the model's context does.

    Raises:
        RefusedError: a length, and the tokens that decode adds to it, pass the model's table of positions.
    """
    sequences = request.sequences
    if not sequences:
        most = pair.longest - STEPS if pair.longest is not None else max(backend.sequences)
        sequences = tuple(length for length in backend.sequences if length <= most) or (max(most // 2, 1),)
    table = pair.table_of_positions
    if table is not None and max(sequences) + STEPS > table:
        raise RefusedError(
            f"--sequence {max(sequences)}: decode adds {STEPS} tokens, and the model has a table of {table:,} "
            f"positions; give {table - STEPS} at most"
        )
    phases: tuple[Phase, ...] = ("prefill", "decode")
    return [Point(*found) for found in itertools.product(phases, request.batches, sequences)]


def bench_rows(measured: Measured, pair: Pair, probe: Probe | None) -> tuple[BenchRow, ...]:
    """Seconds as rows, with the roofline where both models' work is known."""
    rows = []
    for point, seconds in measured.seconds.items():
        speedup, low, high = speedup_of(seconds, order=measured.order)
        together = np.concatenate(seconds, axis=1)
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
                repeats=together.shape[1],
                base=timing_of(together[0], point.tokens),
                pruned=timing_of(together[1], point.tokens),
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


def _native(backend: Backend, path: Path, pair: Pair) -> Side:
    """The control, which has to be another model: held against itself any pruned model passes."""
    native = backend.control(path, pair)
    if native.sha256 is not None and native.sha256 == pair.pruned.sha256:
        raise RefusedError(
            f"--control {path}: is the pruned model itself; name one that was made without those layers from the start"
        )
    return native


def _decides(
    backend: Backend, pair: Pair, native: Side | None, points: Sequence[Point], request: BenchRequest, order: Order
) -> list[Any]:
    """What decides a figure, for finding it again."""
    sides = [side for side in (pair.base, pair.pruned, native) if side is not None]
    effort = [request.repeats, request.max_minutes, backend.loadings, order, request.order]
    models = [[side.sha256, side.file_bytes, side.cached] for side in sides]
    lineage = [list(pair.dropped), pair.plan_sha256]
    return ["bench", backend.device.model_dump(), models, lineage, [point.name for point in points], effort]


def _probe(backend: Backend, pair: Pair, kept: KeptTimings, progress: Progress) -> tuple[Probe | None, str | None]:
    """The device's rates, or why no roofline is drawn."""
    work = pair.base.work
    if work is None or pair.pruned.work is None:
        return None, pair.base.why_no_work or pair.pruned.why_no_work
    with progress.task("probe the device"), one_line(backend.device.backend, "the probe of the device's rates"):
        return kept.probe(lambda: backend.probe(work)), None
