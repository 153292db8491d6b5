"""A bench in words, as a Markdown table, and as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatenorm_export.records.bench import BenchReport, BenchRow, GateReport
from gatenorm_export.reporting.roofline import doubtful_rows

if TYPE_CHECKING:
    from rich.table import Table


def verdict(report: BenchReport) -> str:
    """One sentence for each thing that was found."""
    if report.base.path == report.pruned.path:
        subject = "Beside itself the model:"
    elif report.dropped:
        subject = f"Without {len(report.dropped)} of {report.n_layers} attention sublayers"
    else:
        subject = "Pruned,"
    parts = []
    for found in report.speedups:
        span = f"{found.speedup:.3f} times ({found.low:.3f} to {found.high:.3f})"
        word = " (no measurable difference)" if found.low <= 1 <= found.high else ""
        parts.append(f"{found.phase} is {span} as fast{word}")
    sentences = [f"{subject} {' and '.join(parts)}." if parts else "Nothing could be measured."]
    before, after = report.base.kv_bytes_per_token, report.pruned.kv_bytes_per_token
    if before:
        sentences.append(f"The cache takes {(after or 0) / before:.2%} of its bytes.")
    sentences.append(roofline_sentence(report))
    if report.control is not None:
        sentences.append(f"Control: {report.control.sentence}.")
    if report.missing:
        sentences.append(f"Not measured: {', '.join(row.name for row in report.missing)}.")
    return " ".join(sentences)


def roofline_sentence(report: BenchReport) -> str:
    """Which rows have as much of the predicted speed-up as they should, by their whole interval, and which do not."""
    rows = [(row, row.roofline) for row in report.rows if row.roofline is not None]
    if not rows:
        reason = report.roofline_reason
        return f"No roofline: {reason}." if reason else "No roofline."
    named: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for row, found in rows:
        named[found.reached(row.speedup_low)].append(f"{row.name}: {row.speedup:.3f} of {found.speedup:.3f}")
    if len(named[True]) == len(rows):
        goal = "at least 95 % of the speed-up that the roofline predicts"
        return f"Every row has {goal}, by its whole interval ({len(rows)} rows)."
    return " ".join(doubtful_rows(named, "the predicted speed-up"))


_COLUMNS = (
    "phase",
    "batch",
    "tokens",
    "base p50 ms",
    "pruned p50 ms",
    "p90 ms",
    "p99 ms",
    "tokens/s",
    "speed-up (95 %)",
    "predicted",
)


def row_cells(row: BenchRow) -> tuple[str, ...]:
    """One row of the table, base before pruned."""
    predicted = "–"
    if row.roofline is not None:
        word = {True: "", False: " (short)", None: " (not decided)"}[row.roofline.reached(row.speedup_low)]
        predicted = f"{row.roofline.speedup:.3f}{word}"
    return (
        row.phase,
        str(row.batch),
        str(row.sequence),
        f"{row.base.p50_ms:,.2f}",
        f"{row.pruned.p50_ms:,.2f} ({row.pruned.p50_low_ms:,.2f} to {row.pruned.p50_high_ms:,.2f})",
        f"{row.base.p90_ms:,.2f}, {row.pruned.p90_ms:,.2f}",
        f"{row.base.p99_ms:,.2f}, {row.pruned.p99_ms:,.2f}",
        f"{row.base.tokens_per_s:,.0f}, {row.pruned.tokens_per_s:,.0f}",
        f"{row.speedup:.3f} ({row.speedup_low:.3f} to {row.speedup_high:.3f})",
        predicted,
    )


def bench_markdown(report: BenchReport) -> str:
    """The whole report as Markdown: what it ran on, the rows, costs, and the verdict."""
    device = report.device
    order = f"one after the other: {report.order_reason}"
    if report.alternating:
        order = f"in turns, {f'at {report.loadings} loadings' if report.loadings > 1 else 'at a single loading'}"
    lines = [
        "# Latency of the pruned model beside its base",
        "",
        report.verdict,
        "",
        f"{device.runtime} on {device.device}"
        + (f", driver {device.driver}" if device.driver else "")
        + f"; {device.timer}; base and pruned {order}.",
        "",
        _line(_COLUMNS),
        _line(["---", *["---:"] * (len(_COLUMNS) - 1)]),
        *(_line(row_cells(row)) for row in report.rows),
        "",
        _line(["", "base", "pruned"]),
        _line(["---", "---:", "---:"]),
        *(_line(cells) for cells in cost_cells(report)),
        "",
    ]
    lines += [f"- not measured: {row.name}: {row.reason}" for row in report.missing]
    lines += [f"- {note}" for note in report.notes]
    if report.probe is not None:
        lines.append(f"- {probe_line(report)}")
    return "\n".join(lines).rstrip() + "\n"


def probe_line(report: BenchReport) -> str:
    """What the device was measured to do."""
    probe = report.probe
    if probe is None:
        return ""
    return (
        f"the device moves {probe.bytes_per_s / 1e9:,.1f} GB/s and does {probe.flops_per_s / 1e9:,.0f} GFLOP/s in "
        f"{probe.dtype} ({probe.how})"
    )


def cost_cells(report: BenchReport) -> list[tuple[str, str, str]]:
    """What the two models cost beside time."""
    base, pruned = report.base, report.pruned
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("load, s", base.load_seconds, pruned.load_seconds, ",.2f"),
        (f"peak memory of the {report.device.memory}, MB", _mega(base), _mega(pruned), ",.0f"),
        ("KV cache, bytes per token", base.kv_bytes_per_token, pruned.kv_bytes_per_token or 0, ",.0f"),
        ("file, MB", base.file_bytes / 1e6, pruned.file_bytes / 1e6, ",.0f"),
    ]
    return [
        (label, *(format(value, spec) if value is not None else "–" for value in (before, after)))  # type: ignore[misc]
        for label, before, after, spec in rows
    ]


def _mega(side: object) -> float | None:
    value = getattr(side, "peak_memory_bytes", None)
    return value / 1e6 if value is not None else None


def bench_tables(report: BenchReport) -> list[Table | str]:
    """The same for a terminal, within 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{report.device.runtime} on {report.device.device}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    heads = ("phase", "batch", "tokens", "base\np50 ms", "pruned\np50 ms", "pruned\np99 ms", "pruned\ntokens/s")
    for column in (*heads, "speed-up", "pre-\ndicted"):
        table.add_column(column, no_wrap=True, justify="left" if column == "phase" else "right")
    for row in report.rows:
        table.add_row(
            row.phase,
            str(row.batch),
            str(row.sequence),
            f"{row.base.p50_ms:,.2f}",
            f"{row.pruned.p50_ms:,.2f}",
            f"{row.pruned.p99_ms:,.2f}",
            f"{row.pruned.tokens_per_s:,.0f}",
            f"{row.speedup:.3f} ({row.speedup_low:.2f}–{row.speedup_high:.2f})",
            f"{row.roofline.speedup:.3f}" if row.roofline is not None else "–",
        )
    costs = Table(title="Costs", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "base", "pruned"):
        costs.add_column(column, justify="right" if column else "left")
    for cells in cost_cells(report):
        costs.add_row(*cells)
    shown: list[Table | str] = [table, costs]
    if not report.alternating:
        shown.append(f"one after the other, not in turns: {report.order_reason}")
    shown += [f"not measured: {row.name}: {row.reason}" for row in report.missing]
    shown += [f"note: {note}" for note in report.notes]
    if report.probe is not None:
        shown.append(probe_line(report))
    return [*shown, report.verdict]


def gate_tables(gate: GateReport) -> list[Table | str]:
    """Rows that moved beyond the limit, either way, or may have, and what is missing."""
    from rich.table import Table

    table = Table(title=f"Against {gate.baseline}, at most {gate.max_regression:.1%} slower", title_justify="left")
    for column in ("row", "ratio: time, pruned over base", "p50 of pruned", ""):
        table.add_column(column)
    for row in gate.rows:
        if row.slower or row.faster or row.undecided:
            said = "faster"
            if row.slower or row.undecided:
                said = f"{'SLOWER' if row.slower else 'not decided'} by {' and '.join(row.slower or row.undecided)}"
            p50 = "–"
            if row.p50_change is not None and row.p50_low is not None and row.p50_high is not None:
                p50 = (
                    f"{row.baseline_p50_ms:,.2f} to {row.p50_ms:,.2f} ms: {row.p50_change:+.1%} "
                    f"({row.p50_low:+.1%} to {row.p50_high:+.1%})"
                )
            table.add_row(
                row.name,
                f"{row.ratio_change:+.1%} ({row.ratio_low:+.1%} to {row.ratio_high:+.1%})",
                p50,
                said,
            )
    shown: list[Table | str] = [table] if table.row_count else []
    shown += [f"MISSING: {name} is in the baseline and was not measured" for name in gate.missing]
    shown += [f"new: {name} is not in the baseline" for name in gate.added]
    shown += [f"note: {note}" for note in gate.notes]
    return [*shown, gate.sentence]


def _line(cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"  # type: ignore[attr-defined]
