"""``gatenorm correlate MODEL --text FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gatenorm_export.artifacts import write_text
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output, add_tower
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.cli.values import whole
from gatenorm_export.errors import ExitCode
from gatenorm_export.kept_work import forget, kept_beside
from gatenorm_export.records import CorrelationReport


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Compare Gate-Norm with what attention does on a text: the attention-to-input norm ratio and cosine importance "
        "of every layer, by forward passes of the framework model; one table, one plot, and a warning when they "
        "disagree on more than half of the layers.\n\n"
        "With -o the sums are kept as they come: the same command, given again after an interruption, goes on behind "
        "the last batch of text that was measured.",
        examples=(
            ("on a text of yours", "gatenorm correlate smollm2 --text book.txt --drop 8 -o correlation/"),
            ("on the shipped text", "gatenorm correlate minilm"),
        ),
    )
    parser.add_argument("model", help="a checkpoint on disk as `gatenorm score` takes it, a hub id, smollm2 or minilm")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="the text to measure on, UTF-8 (default: a shipped one)"
    )
    add_out(parser, "a folder (correlation.json and correlation.svg in it) or a .json file")
    parser.add_argument(
        "--max-text-tokens", type=whole(1), default=2048, metavar="N", help="tokens of the text to use (default: 2048)"
    )
    parser.add_argument(
        "--drop", type=int, metavar="N", help="compare the N lowest layers (default: a quarter of all, at least one)"
    )
    add_tower(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, show the table and the finding, and write the files that were asked for."""
    terminal = Terminal.of(args)
    from gatenorm_export.correlating import CorrelationRequest, correlate_model, correlation_svg
    from gatenorm_export.sources import resolve_model

    spec = resolve_model(args.model, progress=terminal.progress)
    request = CorrelationRequest(
        text=args.text, max_text_tokens=args.max_text_tokens, cut=args.drop, tower=args.tower, command=args.command
    )
    kept = kept_beside(args.out, "correlate")
    report = correlate_model(spec, request, kept=kept, progress=terminal.progress)
    if args.out is not None:
        path = args.out if args.out.suffix == ".json" else args.out / "correlation.json"
        report.save(path)
        write_text(path.with_suffix(".svg"), correlation_svg(report))
        forget(kept)
        terminal.say(f"wrote {path} and {path.with_suffix('.svg')}")
    terminal.result(report.to_object(), *shown(report))
    return int(ExitCode.OK)


def shown(report: CorrelationReport) -> list[RenderableType]:
    """The table, a sentence for each measure, and the warning where there is one."""
    lines: list[RenderableType] = [_table(report), *(entry.sentence for entry in report.agreements)]
    if report.warning is not None:
        lines.append(Text.assemble(("warning:", "bold red"), " ", report.warning))
    return lines


def _table(report: CorrelationReport) -> Table:
    """A row for each layer; what is among the lowest of its column is marked."""
    tower = f", {report.tower}" if report.tower else ""
    why = "" if report.cut_asked else ", a quarter of the layers"
    table = Table(
        title=f"{report.model_name}{tower} on {report.n_tokens:,} tokens of {report.text}\n"
        f"✕ marks the lowest {report.cut} of a column{why}",
        title_justify="left",
    )
    for column in ("layer", "Gate-Norm", "", "norm ratio", "", "cosine importance", ""):
        table.add_column(column, justify="right", no_wrap=True)
    lowest = [report.lowest, *(entry.lowest for entry in report.agreements)]
    for row in report.layers:
        cells = [str(row.layer)]
        gate = f"{row.gate_norm:.1f}" if row.gate_norm >= 10 else f"{row.gate_norm:.4g}"
        for value, low in zip((gate, f"{row.norm_ratio:.4f}", f"{row.cosine:.4f}"), lowest, strict=True):
            cells += [value, "✕" if row.layer in low else ""]
        table.add_row(*cells, style="bold" if row.layer in report.lowest else None)
    return table
