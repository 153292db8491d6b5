"""A bench held against an earlier one: which rows lost more than the limit, and which are gone."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from gatenorm_export.benching.clocks import busy
from gatenorm_export.errors import InputError, RefusedError, UsageError
from gatenorm_export.records.bench import BenchDevice, BenchReport, BenchRow, GateReport, MovedRow

RowKey = tuple[str, int, int]
"""Phase, batch and sequence."""

_SAME = {
    "backend": "backend",
    "runtime": "runtime",
    "device": "device",
    "driver": "driver",
    "threads": "number of threads",
    "timer": "timer",
}
"""What must be equal for milliseconds to mean the same."""

# A 95 % interval is so many standard deviations wide.
_WIDTH = 2 * 1.959964


def parse_regression(text: str) -> float:
    """Read a limit such as ``3%``: how much slower a row may be, as a share.

    Raises:
        UsageError: no percentage from 0 to 100. A bare 3 could mean 3 % or three times, so the sign is asked for.
    """
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", text.strip())
    if match is None or float(match[1]) > 100:
        raise UsageError(f"--max-regression {text!r}: write a percentage from 0% to 100%, such as 3%")
    return float(match[1]) / 100


def read_baseline(path: Path) -> BenchReport:
    """A results file of an earlier bench.

    Raises:
        InputError: missing, damaged, no bench, or one without rows.
    """
    file = path / "bench.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such baseline; gatenorm bench -o writes one")
    report = BenchReport.load(file)
    if not report.rows:
        raise InputError(f"{file}: has no measured rows to compare with; measure it again")
    for row in report.rows:
        values = [row.speedup, row.speedup_low, row.speedup_high, row.base.p50_ms]
        values += [row.pruned.p50_ms, row.pruned.p50_low_ms, row.pruned.p50_high_ms]
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise InputError(f"{file}: {row.name}: has figures that are no positive numbers; measure it again")
    return report


def check_comparable(baseline: BenchReport, device: BenchDevice, name: str, *, across_devices: bool) -> tuple[str, ...]:
    """What differs between the two machines, in words; nothing where all is equal.

    Raises:
        RefusedError: something differs and was not allowed to.
    """
    found = tuple(
        f"{words} {getattr(baseline.device, field)} then, {getattr(device, field)} now"
        for field, words in _SAME.items()
        if getattr(baseline.device, field) != getattr(device, field)
    )
    if found and not across_devices:
        raise RefusedError(
            f"{name}: was measured under other conditions ({'; '.join(found)}); measure a baseline here, or say "
            "--across-devices to compare ratios alone"
        )
    return found


def check_rows(baseline: BenchReport, n_layers: int, keys: Collection[RowKey], name: str) -> None:
    """Check that a model of so many layers, measured at ``keys``, has anything to be held against.

    Raises:
        RefusedError: the models have different numbers of layers, or no row is in both.
    """
    if n_layers != baseline.n_layers:
        raise RefusedError(
            f"{name}: is of a model with {baseline.n_layers} attention layers, this one has {n_layers}; name its own "
            "baseline"
        )
    if not any(row.key in keys for row in baseline.rows):
        raise RefusedError(f"{name}: has no row in common with what was measured; use the same --batch and --sequence")


def hold_to_baseline(
    report: BenchReport, baseline: BenchReport, name: str, limit: float, *, across_devices: bool
) -> GateReport:
    """Compare row by row.

    A row fails by a measure when its median lost more than ``limit`` and the interval of the loss lies above zero, so
    that noise alone does not fail a pipeline. It is not decided where a loss of more than the limit lies in an interval
    so wide that a loss of just the limit would not have lifted it above zero: there the gate could not fail. Measures
    are the ratio (pruned over base time, both against their baselines) and, on the same device, where the machine was
    idle both times, the pruned model's median. A row of the baseline that was not measured fails too: a gate that it
    could slip through would be none.

    Raises:
        RefusedError: see :func:`check_comparable` and :func:`check_rows`.
    """
    check_rows(baseline, report.n_layers, {row.key for row in report.rows}, name)
    differs = check_comparable(baseline, report.device, name, across_devices=across_devices)
    then, now = ({row.key: row for row in found.rows} for found in (baseline, report))
    # A GPU's own clock does not see what else the processor does.
    on_cpu = report.device.driver is None
    loaded = on_cpu and any(busy(found.clocks_before, found.device.threads) for found in (baseline, report))
    alone = bool(differs) or loaded
    rows = tuple(_moved(then[key], row, limit, ratio_only=alone) for key, row in now.items() if key in then)
    missing = tuple(row.name for key, row in then.items() if key not in now)
    slower = [row for row in rows if row.slower]
    undecided = [row for row in rows if row.undecided and not row.slower]
    notes = [f"measured across devices, by ratios alone: {'; '.join(differs)}"] if differs else []
    if loaded:
        notes.append(
            "the machine was not idle then or now, so milliseconds are not held against each other; ratios are"
        )
    if baseline.loadings != report.loadings:
        notes.append(
            f"loadings: {baseline.loadings} of the baseline, {report.loadings} now; at a single one the ratio depends "
            "on which model was loaded first, by a few per cent"
        )
    if baseline.dropped != report.dropped:
        notes.append(f"the baseline removed layers {list(baseline.dropped)}, this one {list(report.dropped)}")
    if baseline.plan_sha256 != report.plan_sha256:
        notes.append("the two were pruned by different plans")
    return GateReport(
        baseline=name,
        max_regression=limit,
        across_devices=across_devices,
        rows=rows,
        missing=missing,
        added=tuple(row.name for key, row in now.items() if key not in then),
        notes=tuple(notes),
        passed=False if slower or missing else None if undecided else True,
        sentence=_sentence(len(rows), slower, undecided, missing, limit),
    )


def _moved(then: BenchRow, now: BenchRow, limit: float, *, ratio_only: bool) -> MovedRow:
    ratio = _change(
        math.log(then.speedup / now.speedup),
        math.log(then.speedup_high / then.speedup_low),
        math.log(now.speedup_high / now.speedup_low),
    )
    p50 = _change(
        math.log(now.pruned.p50_ms / then.pruned.p50_ms),
        math.log(now.pruned.p50_high_ms / now.pruned.p50_low_ms),
        math.log(then.pruned.p50_high_ms / then.pruned.p50_low_ms),
    )
    judged: dict[Literal["ratio", "p50"], tuple[float, float, float]] = {"ratio": ratio}
    if not ratio_only:
        judged["p50"] = p50
    return MovedRow(
        phase=now.phase,
        batch=now.batch,
        sequence=now.sequence,
        baseline_speedup=then.speedup,
        speedup=now.speedup,
        ratio_change=ratio[0],
        ratio_low=ratio[1],
        ratio_high=ratio[2],
        baseline_p50_ms=then.pruned.p50_ms,
        p50_ms=now.pruned.p50_ms,
        p50_change=None if ratio_only else p50[0],
        p50_low=None if ratio_only else p50[1],
        p50_high=None if ratio_only else p50[2],
        slower=tuple(name for name, (middle, low, _) in judged.items() if middle > limit and low > 0),
        undecided=tuple(name for name, change in judged.items() if _undecided(*change, limit)),
        faster=any(middle < -limit and high < 0 for middle, _, high in judged.values()),
    )


def _change(middle: float, *widths: float) -> tuple[float, float, float]:
    """A relative change from a difference of logarithms, and its interval from those of its two parts."""
    half = 1.959964 * math.hypot(*(width / _WIDTH for width in widths))
    return math.expm1(middle), math.expm1(middle - half), math.expm1(middle + half)


def _undecided(middle: float, low: float, high: float, limit: float) -> bool:
    """Whether more than the limit may have been lost, and a loss of the limit alone would not have been seen."""
    if middle > limit and low > 0:
        return False
    half = (math.log1p(high) - math.log1p(low)) / 2
    return high > limit and half >= math.log1p(limit)


def _sentence(
    n_rows: int, slower: list[MovedRow], undecided: list[MovedRow], missing: tuple[str, ...], limit: float
) -> str:
    parts = []
    if undecided:
        named = "; ".join(f"{row.name} by {' and '.join(row.undecided)}" for row in undecided)
        parts.append(
            f"in {len(undecided)} of {n_rows} rows the interval is too wide to see a loss of {limit:.1%}: {named}; "
            "measure more, with --repeats or --max-minutes, or on a quieter machine, the baseline too"
        )
    if not slower and not missing:
        if undecided:
            return f"not decided: {parts[0]}"
        return f"held: none of {n_rows} rows is more than {limit:.1%} slower than the baseline"
    if slower:
        named = "; ".join(f"{row.name} by {' and '.join(row.slower)}" for row in slower)
        parts.insert(0, f"{len(slower)} of {n_rows} rows are more than {limit:.1%} slower than the baseline: {named}")
    if missing:
        parts.append(f"{len(missing)} rows of the baseline were not measured: {'; '.join(missing)}")
    return f"REGRESSION: {'. '.join(parts)}"
