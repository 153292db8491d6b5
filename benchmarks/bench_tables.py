"""Results of ``benchmarks.gpu`` as cells, goals and the README's table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from gatenorm_export.records.bench import ROOFLINE_GOAL, BenchReport, BenchRow

GOAL_SPEEDUP, GOAL_SHARE, GOAL_REMOVED = 1.30, ROOFLINE_GOAL, (16, 40)
_WORDS = {True: "held", False: "MISSED", None: "not decided"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One backend without ``drop`` layers, or why there is no report; ``drop`` None is the whole backend."""

    backend: str
    drop: int | None
    report: BenchReport | None
    reason: str | None

    def to_object(self) -> dict[str, Any]:
        """In JSON types."""
        report = self.report.to_object() if self.report is not None else None
        return {"backend": self.backend, "drop": self.drop, "reason": self.reason, "report": report}

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Cell:
        """From JSON types."""
        report = BenchReport.model_validate(entry["report"]) if entry["report"] is not None else None
        return cls(entry["backend"], entry["drop"], report, entry["reason"])


@dataclasses.dataclass(frozen=True)
class Goal:
    """What was wanted, what was found, and whether it held; None where it could not be told."""

    name: str
    held: bool | None
    sentence: str

    def to_object(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self)


def goals_of(cells: Sequence[Cell]) -> list[Goal]:
    """Each goal for each backend that was measured."""
    goals = []
    for backend in dict.fromkeys(cell.backend for cell in cells):
        reports = [cell.report for cell in cells if cell.backend == backend and cell.report is not None]
        pruned = [report for report in reports if report.dropped]
        if pruned:
            goals += [_speed(backend, pruned), _cache(backend, pruned), _roofline(backend, pruned)]
    return goals


def _speed(backend: str, reports: Sequence[BenchReport]) -> Goal:
    name = f"{backend}: {GOAL_SPEEDUP:.2f} times as fast without {GOAL_REMOVED[0]} of {GOAL_REMOVED[1]}"
    at = [report for report in reports if (len(report.dropped), report.n_layers) == GOAL_REMOVED]
    found = [speedup for report in at for speedup in report.speedups]
    if not found:
        return Goal(name, None, f"{name}: not measured")
    words = ", ".join(f"{entry.phase} {entry.speedup:.3f} ({entry.low:.3f} to {entry.high:.3f})" for entry in found)
    # By whole intervals: a median alone shows nothing.
    held = True if max(entry.low for entry in found) >= GOAL_SPEEDUP else None
    if max(entry.high for entry in found) < GOAL_SPEEDUP:
        held = False
    return Goal(name, held, f"{name}: {_WORDS[held]}: {words}")


def _cache(backend: str, reports: Sequence[BenchReport]) -> Goal:
    name = f"{backend}: bytes of KV cache are (L - N) / L"
    wrong, known = [], 0
    for report in reports:
        before, after = report.base.kv_bytes_per_token, report.pruned.kv_bytes_per_token
        if before is None:
            continue
        known += 1
        # Whole numbers of bytes on both sides, so that equal means equal.
        if round((after or 0) * report.n_layers) != round(before * (report.n_layers - len(report.dropped))):
            wrong.append(f"{len(report.dropped)} removed: {after or 0:,.0f} of {before:,.0f}")
    if not known:
        return Goal(name, None, f"{name}: not measured")
    return Goal(name, not wrong, f"{name}: {'held' if not wrong else 'MISSED: ' + '; '.join(wrong)}")


def _roofline(backend: str, reports: Sequence[BenchReport]) -> Goal:
    name = f"{backend}: {GOAL_SHARE} of the predicted speed-up in every row"
    rows = [(report, row) for report in reports for row in report.rows if row.roofline is not None]
    if not rows:
        return Goal(name, None, f"{name}: not measured")
    reached: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for report, row in rows:
        if row.roofline is not None:
            words = f"{len(report.dropped)} removed, {row.name}: {row.roofline.share:.3f}"
            reached[row.roofline.reached(row.speedup_low)].append(words)
    parts = [f"{_WORDS[held]}: {'; '.join(reached[held])}" for held in (False, None) if reached[held]]
    text = f"{name}: {'. '.join(parts) or _WORDS[True]} ({len(rows)} rows)"
    return Goal(name, False if reached[False] else None if reached[None] else True, text)


def markdown(cells: Sequence[Cell]) -> str:
    """For each backend: removed layers down, points across, measured speed-up with its interval and the predicted one.

    Below it what it ran on, and what was not measured, with reasons.
    """
    lines: list[str] = []
    for backend in dict.fromkeys(cell.backend for cell in cells):
        found = [cell for cell in cells if cell.backend == backend]
        reports = [(cell.drop, cell.report) for cell in found if cell.report is not None]
        if reports:
            lines += [*_table(reports), ""]
        for cell in found:
            if cell.reason is not None:
                what = f"{backend}, {cell.drop} removed" if cell.drop is not None else backend
                lines.append(f"- {what}: not measured: {cell.reason}")
        lines += [
            f"- {backend}, {drop} removed: not measured: {row.name}: {row.reason}"
            for drop, report in reports
            for row in report.missing
        ]
    return "\n".join(lines).rstrip() + "\n"


def _table(reports: Sequence[tuple[int | None, BenchReport]]) -> list[str]:
    first = reports[0][1]
    keys = list(dict.fromkeys(row.key for _, report in reports for row in report.rows))
    batches = {batch for _, batch, _ in keys}
    heads = [f"{phase} {sequence}{f' x {batch}' if batches != {1} else ''}" for phase, batch, sequence in keys]
    lines = [
        f"{first.device.runtime} on {first.device.device}"
        + (f", driver {first.device.driver}" if first.device.driver else "")
        + ":",
        "",
        _row([f"removed of {first.n_layers}", *heads, "KV cache"]),
        _row(["---:", *["---"] * len(keys), "---:"]),
    ]
    for drop, report in reports:
        rows = {row.key: row for row in report.rows}
        before, after = report.base.kv_bytes_per_token, report.pruned.kv_bytes_per_token
        cache = f"{(after or 0) / before:.1%}" if before else "–"
        lines.append(_row([drop, *(_cell(rows.get(key), drop) for key in keys), cache]))
    return lines


def _cell(row: BenchRow | None, drop: int | None) -> str:
    if row is None:
        return "–"
    text = f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
    return text if row.roofline is None or not drop else f"{text}, {row.roofline.speedup:.2f}"


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
