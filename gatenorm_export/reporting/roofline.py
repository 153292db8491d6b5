"""What a report says of the roofline: how much of the predicted speed-up was found."""

from __future__ import annotations

from gatenorm_export.records import Latency, LatencyRow
from gatenorm_export.records.bench import RooflineRow
from gatenorm_export.reporting.formatting import SPACE, count, number, percent, times


def roofline_rows(latency: Latency) -> list[tuple[LatencyRow, RooflineRow]]:
    """The rows that have a prediction."""
    return [(row, row.roofline) for row in latency.rows if row.roofline is not None]


def roofline_words(latency: Latency) -> str:
    """What was predicted from, and which rows reach it by their whole interval; empty for records of before."""
    rows = roofline_rows(latency)
    if not rows:
        return f"There is no roofline: {latency.roofline_reason}." if latency.roofline_reason else ""
    named: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for row, found in rows:
        words = f"{row_label(row)}: {times(row.speedup)} of {times(found.speedup)}"
        named[found.reached(row.speedup_low)].append(words)
    goal, n_rows = f"at least 95{SPACE}% of the speed-up that the roofline predicts", len(rows)
    findings = []
    if len(named[True]) == n_rows:
        findings.append(f"Every row has {goal}, by its whole interval.")
    if named[False]:
        findings.append(
            f"More than 5{SPACE}% of the speed-up that the roofline predicts is left on the table in "
            f"{len(named[False])} of {n_rows} rows: {'; '.join(named[False])}."
        )
    if named[None]:
        findings.append(
            f"Whether {len(named[None])} of {n_rows} rows have {goal} is not decided, their intervals reach to both "
            f"sides of it: {'; '.join(named[None])}."
        )
    return " ".join([*findings, _from(latency)]).strip()


def lowest_share(latency: Latency | None) -> tuple[str, str] | None:
    """Value and note of the key figure; None without a roofline."""
    rows = roofline_rows(latency) if latency is not None else []
    if not rows:
        return None
    row, found = min(rows, key=lambda pair: pair[1].share)
    word = ", not decided" if found.reached(row.speedup_low) is None else ""
    note = f"lowest of {count(len(rows))}: {row_label(row)}, {times(found.speedup)} predicted{word}"
    return percent(found.share), note


def row_label(row: LatencyRow) -> str:
    """A measured point in words."""
    batch = f", batch {count(row.batch)}" if row.batch is not None else ""
    if row.phase == "prefill":
        return f"prefill of {count(row.sequence)} tokens{batch}"
    return f"decode after {count(row.sequence)} tokens{batch}"


def _from(latency: Latency) -> str:
    probe = latency.probe
    if probe is None:
        return ""
    return (
        f"It is predicted from the bytes and operations that were removed, at {number(probe.bytes_per_s / 1e9)}{SPACE}"
        f"GB/s and {number(probe.flops_per_s / 1e9)}{SPACE}GFLOP/s in {probe.dtype}, which the device was measured to "
        f"do ({probe.how})."
    )
