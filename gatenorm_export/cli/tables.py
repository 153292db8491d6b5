"""A comparison as a person reads it in the terminal, and as a pipeline reads it from the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gatenorm_export.errors import ExitCode
from gatenorm_export.records import (
    AnyQuality,
    ComparisonReport,
    Latency,
    Quality,
    Sizes,
)

if TYPE_CHECKING:
    from gatenorm_export.reporting.quality import OtherQuality


def exit_code_of(report: ComparisonReport) -> ExitCode:
    """Unfaithful surgery or a wrong engine outranks a missed threshold: its figures mean nothing."""
    if report.faithfulness.passed is False or any(engine.passed is False for engine in report.engine_accuracy):
        return ExitCode.UNFAITHFUL
    if not all(threshold.passed for threshold in report.thresholds):
        return ExitCode.THRESHOLD
    return ExitCode.OK


def failures_of(report: ComparisonReport) -> list[str]:
    """Why :func:`exit_code_of` is no success, in words."""
    wrong = [f"{engine.engine}: {engine.reason}" for engine in report.engine_accuracy if engine.passed is False]
    if report.faithfulness.passed is False:
        wrong.insert(0, report.faithfulness.reason)
    return wrong or [
        f"a limit was missed: --{threshold.name} {threshold.limit:g}, measured {threshold.measured:.4g}"
        for threshold in report.thresholds
        if not threshold.passed
    ]


def comparison_tables(report: ComparisonReport) -> list[RenderableType]:
    """Quality, latency and sizes as tables, then thresholds and the verdict."""
    shown: list[RenderableType] = [_quality(report.quality)]
    if report.latency is not None:
        shown += [_latency(report.latency), *_notes(report.latency)]
    if report.engine_latency is not None:
        shown += [_latency(report.engine_latency), *_notes(report.engine_latency)]
    elif report.engine_latency_reason:
        shown.append(f"latency of the engines: {report.engine_latency_reason}")
    shown.append(_sizes(report.base_sizes, report.pruned_sizes))
    shown.append(f"faithfulness: {report.faithfulness.reason}")
    shown += [f"{engine.engine} ({engine.role}): {engine.reason}" for engine in report.engine_accuracy]
    if report.latency is not None:
        from gatenorm_export.reporting.roofline import roofline_words

        words = roofline_words(report.latency)
        shown += [f"roofline: {words}"] if words else []
    for threshold in report.thresholds:
        state = "held" if threshold.passed else "MISSED"
        shown.append(f"{threshold.name} {threshold.limit:g}: {state}, measured {threshold.measured:.4g}")
    shown.append(Text(report.verdict, style="bold"))
    return shown


def _quality(quality: AnyQuality) -> Table:
    if not isinstance(quality, Quality):
        return _other_quality(quality)
    table = Table(title=f"Quality on {quality.n_tokens:,} tokens of {quality.text}", title_justify="left")
    for column in ("", "base", "pruned"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("perplexity", f"{quality.base_ppl:.2f}", f"{quality.pruned_ppl:.2f}")
    table.add_row("perplexity ratio", "1", f"{quality.ppl_ratio:.3f}")
    table.add_row("KL(base || pruned), nats per token", "0", f"{quality.kl_nats:.4f}")
    for k, agreement in ((1, quality.top1_agreement), (5, quality.top5_agreement), (10, quality.top10_agreement)):
        table.add_row(f"top-{k} agreement", "100 %", f"{agreement:.1%}")
    table.add_row("greedy continuation agreement", "100 %", f"{quality.greedy_agreement:.1%}")
    return table


def _other_quality(quality: OtherQuality) -> Table:
    from gatenorm_export.reporting.quality import quality_rows, quality_source

    table = Table(title=quality_source(quality), title_justify="left")
    for column in ("", "pruned"):
        table.add_column(column, justify="left" if not column else "right")
    for label, value, _ in quality_rows(quality):
        table.add_row(label, value)
    return table


def _latency(latency: Latency) -> Table:
    by_batch = any(row.batch is not None for row in latency.rows)
    batch = "" if by_batch else f", batch {latency.batch}"
    table = Table(title=f"Latency, {latency.backend} on {latency.device}{batch}", title_justify="left")
    varies, rate = "batch" if by_batch else latency.unit, f"pruned {latency.unit}/s"
    for column in ("", varies, "base p50 ms", "pruned p50 ms", rate, "speed-up (95 % interval)"):
        table.add_column(column, justify="left" if not column else "right")
    for row in latency.rows:
        table.add_row(
            row.phase if latency.decode_speedup is not None else "forward",
            str(row.sequence if row.batch is None else row.batch),
            f"{row.base_p50_ms:.1f}",
            f"{row.pruned_p50_ms:.1f}",
            f"{row.pruned_tokens_per_s:,.0f}",
            f"{row.speedup:.3f} ({row.speedup_low:.3f} to {row.speedup_high:.3f})",
        )
    return table


def _notes(latency: Latency) -> list[str]:
    return [f"note: {note}" for note in latency.notes]


def _sizes(base: Sizes, pruned: Sizes) -> Table:
    table = Table(title="Sizes", title_justify="left")
    for column in ("", "base", "pruned"):
        table.add_column(column, justify="left" if not column else "right")
    rows = (
        ("attention sublayers", base.facts.n_attention, pruned.facts.n_attention),
        ("graph nodes", base.facts.n_nodes, pruned.facts.n_nodes),
        ("parameters", base.facts.n_parameters, pruned.facts.n_parameters),
        ("KV cache, bytes per token", base.facts.kv_bytes_per_token, pruned.facts.kv_bytes_per_token),
        ("ONNX bytes", base.onnx_bytes, pruned.onnx_bytes),
        ("engine bytes", base.engine_bytes, pruned.engine_bytes),
    )
    for label, before, after in rows:
        if before is not None and after is not None:
            table.add_row(label, f"{before:,}", f"{after:,}")
    return table
