"""``gatenorm sweep MODEL``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from gatenorm_export.artifacts import write_text
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.executor_options import add_executor, check_executor_options, executor_of
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_calibration, add_output, corpus_request
from gatenorm_export.cli.outputs import add_out, folders
from gatenorm_export.cli.values import whole
from gatenorm_export.errors import ExitCode, UsageError
from gatenorm_export.planning import RANKINGS
from gatenorm_export.records import SweepCell, SweepReport


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Measure rankings and repairs at several numbers of layers: quality, speed, cache; one plot. The table grows "
        "cell by cell, and an interrupted sweep goes on where it was.\n\n"
        "Rankings, and what goes first: " + "; ".join(f"{name}: {what}" for name, what in RANKINGS.items()) + ".",
        examples=(
            (
                "three rankings with and without repair",
                "gatenorm sweep smollm2 --drops 4,8 --rank gate-norm,last,guard --repair none,linear -o sweep/",
            ),
            (
                "two random orders as controls, quality alone",
                "gatenorm sweep out/base --rank gate-norm,random:0,random:1 --no-latency -o sweep/",
            ),
            (
                "on a Ray cluster",
                "gatenorm sweep smollm2 --executor ray://cluster:10001 --ray-resources cpus=8 -o sweep/",
            ),
        ),
    )
    parser.add_argument(
        "model", help="an exported graph (a .onnx file or its folder), or a checkpoint as `gatenorm score` takes it"
    )
    add_out(parser, "a folder for sweep.json and sweep.svg", required=True, locks=folders())
    group = parser.add_argument_group("what is swept (lists, separated by commas)")
    group.add_argument(
        "--drops", metavar="LIST", default="1,4,8,12,16", help="numbers of layers to remove (default: 1,4,8,12,16)"
    )
    group.add_argument(
        "--rank", metavar="LIST", default="gate-norm,last", help="rankings, listed below (default: gate-norm,last)"
    )
    group.add_argument(
        "--repair", metavar="LIST", default="none", help="repairs, as `gatenorm prune --repair` (default: none)"
    )
    group.add_argument(
        "--scores", type=Path, metavar="FILE", help="scores.json for gate-norm (default: the one above the graph)"
    )
    group.add_argument("--despite-failure", action="store_true", help="measure what guard calls a ruined model too")
    judged = parser.add_argument_group("what is measured")
    judged.add_argument("--text", type=Path, metavar="FILE", help="text to judge quality on (default: a shipped one)")
    judged.add_argument(
        "--max-text-tokens", type=whole(1), default=2048, metavar="N", help="tokens of the text to use (default: 2048)"
    )
    judged.add_argument("--no-latency", action="store_true", help="do not measure latency")
    add_calibration(parser)
    add_executor(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sweep, show the table and the front, and write the plot."""
    terminal = Terminal.of(args)
    from gatenorm_export.repairs import parse_repair
    from gatenorm_export.sweeping import SWEEP_NAME, SweepRequest, parse_rank, prepare, run_sweep, sweep_svg

    check_executor_options(args)
    drops = parse_drops(args.drops)
    ranks = tuple(parse_rank(part) for part in _parts("--rank", args.rank))
    repairs = tuple(parse_repair(part) for part in _parts("--repair", args.repair))
    asked = args.calibration_text is not None or args.no_shipped_text
    if asked and not any(rank.needs_text for rank in ranks) and all(repair.nothing for repair in repairs):
        raise UsageError("the calibration text is for cosine, guard and --repair; add one of them, or leave it out")
    corpus = corpus_request(args)
    by_score = any(rank.kind == "gate-norm" for rank in ranks)
    if args.scores is not None and not by_score:
        raise UsageError("--scores is for the ranking gate-norm; add it to --rank, or leave the scores out")
    subject = prepare(args.model, args.out, scores=args.scores, needs_scores=by_score, progress=terminal.progress)
    request = SweepRequest(
        subject=subject,
        out=args.out,
        drops=drops,
        ranks=ranks,
        repairs=repairs,
        calibration=corpus,
        text=args.text,
        max_text_tokens=args.max_text_tokens,
        latency=not args.no_latency,
        despite_failure=args.despite_failure,
        command=args.command,
    )
    with executor_of(args, args.out / "work" / "tasks", terminal.progress) as executor:
        report = run_sweep(request, executor=executor, progress=terminal.progress)
    plot = args.out / "sweep.svg"
    write_text(plot, sweep_svg(report))
    terminal.say(f"wrote {args.out / SWEEP_NAME} and {plot}")
    terminal.result(report.to_object(), sweep_table(report), *missing_lines(report), report.sentence)
    return int(ExitCode.OK)


def parse_drops(text: str) -> tuple[int, ...]:
    """Read numbers of layers such as ``1,4,8``.

    Raises:
        UsageError: no such list, or a number that is named twice.
    """
    parts = _parts("--drops", text)
    for part in parts:
        if not re.fullmatch(r"\d{1,6}", part):
            raise UsageError(f"--drops {text!r}: {part!r} is no number of layers; write 1,4,8")
    drops = [int(part) for part in parts]
    return tuple(drops) if len(set(drops)) == len(drops) else _twice("--drops", text, drops)


def _parts(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if len(set(parts)) < len(parts):
        _twice(option, text, parts)
    return parts


def _twice(option: str, text: str, parts: Sequence[object]) -> tuple[int, ...]:
    twice = next(part for index, part in enumerate(parts) if part in parts[:index])
    raise UsageError(f"{option} {text!r}: {twice} is named twice; name it once")


def sweep_table(report: SweepReport) -> Table:
    """A row for each measured cell; the last column says which fronts it is on."""
    base = f", unpruned perplexity {report.base_ppl:.2f}" if report.base_ppl is not None else ""
    title = f"Sweep of {report.model_name} on {report.n_text_tokens:,} tokens of {report.text}{base}"
    # Folded, since a ranking or a list of layers that is cut off could not be told from another.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    for column, width in (("rank", 9), ("repair", 6), ("drop", 4), ("layers", 10)):
        justify: Literal["left", "right"] = "right" if column == "drop" else "left"
        table.add_column(column, overflow="fold", min_width=width, justify=justify)
    for column in ("ppl\nratio", "KL,\nnats", "decode\nspeed-up", "KV\nleft"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("on the\nfront", no_wrap=True)
    for cell in report.cells:
        if cell.figures is not None:
            figures = cell.figures
            latency = figures.latency
            timed = "–"
            if latency is not None:
                _, speedup, low, high = latency.main
                timed = f"{speedup:.3f} ({low:.2f}–{high:.2f})"
            table.add_row(
                cell.rank,
                cell.repair,
                str(cell.drop),
                _runs(cell.layers),
                f"{figures.ppl_ratio:.3f}",
                f"{figures.kl_nats:.4f}",
                timed,
                f"{figures.kv_share:.1%}" if figures.kv_share is not None else "–",
                _fronts(cell, report),
            )
    return table


def missing_lines(report: SweepReport) -> list[RenderableType]:
    """The cells that have a reason instead of figures, equal reasons together."""
    reasons: dict[str, list[str]] = {}
    for cell in report.cells:
        if cell.reason is not None:
            reasons.setdefault(cell.reason, []).append(cell.name)
    return [f"not measured: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _fronts(cell: SweepCell, report: SweepReport) -> str:
    fast, small = cell.name in report.speed_front, cell.name in report.kv_front
    return "both" if fast and small else "speed" if fast else "cache" if small else ""


def _runs(layers: Sequence[int]) -> str:
    """Layers as the options take them: 19,27-29."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
