"""``gatenorm bench BASE PRUNED``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import write_text
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_output
from gatenorm_export.errors import ExitCode, InputError

BENCH_NAME, TABLE_NAME = "bench.json", "bench.md"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    from gatenorm_export.benching.choosing import BACKENDS

    parser.description = (
        "Time prefill and decode of a pruned model and its base in turns.\n"
        "The result is their ratio with its interval, beside what the removed bytes and operations predict."
    )
    parser.epilog = (
        "examples:\n  gatenorm bench out/base out/pruned -o out/\n"
        "  gatenorm bench base.engine pruned.engine --backend tensorrt --batch 1,4 --sequence 512,2048 -o a.json\n"
        "  gatenorm bench MODEL plan.json --backend torch\n"
        "  gatenorm bench out/base out/pruned --baseline results.json --max-regression 3%"
    )
    parser.add_argument("base", type=Path, help="the unpruned graph or engine; with torch, a checkpoint")
    parser.add_argument("pruned", type=Path, help="the pruned graph or engine; with torch, a plan.json")
    parser.add_argument("--backend", choices=tuple(BACKENDS), help="default: by the files, ort-cpu for graphs")
    parser.add_argument("-o", "--out", type=Path, help=f"a folder ({BENCH_NAME}, {TABLE_NAME}) or a .json file")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument("--batch", metavar="LIST", default="1", help="sequences at once, such as 1,4 (default: 1)")
    measured.add_argument(
        "--sequence",
        metavar="LIST",
        help="prompt and cache lengths in tokens (default: 64,256,512; on a GPU 512,1024,2048,4096)",
    )
    measured.add_argument("--repeats", type=int, metavar="N", help="pairs of calls (default: what fits the minutes)")
    measured.add_argument(
        "--max-minutes", type=float, default=5.0, metavar="M", help="for timing, loading apart (default: 5)"
    )
    measured.add_argument(
        "--order",
        choices=("auto", "alternate", "sequential"),
        default="auto",
        help="in turns, or one model after the other where memory does not hold both (default: auto)",
    )
    measured.add_argument("--control", type=Path, metavar="NATIVE", help="a model made without those layers")
    measured.add_argument(
        "--graphs", type=Path, nargs=2, metavar=("BASE", "PRUNED"), help="the graphs that engines were built from"
    )
    measured.add_argument("--device", choices=("cpu", "cuda"), help="of torch (default: a GPU if there is one)")
    measured.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="of torch (default: fp32, GPU fp16)")
    gate = parser.add_argument_group("regression gate (failed: exit code 12)")
    gate.add_argument("--baseline", type=Path, metavar="FILE", help="results of an earlier bench to hold this against")
    gate.add_argument("--max-regression", metavar="PERCENT", help="how much slower a row may be (default: 3%%)")
    gate.add_argument("--across-devices", action="store_true", help="compare ratios although the machines differ")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write, and fail the pipeline where the gate or the control does."""
    terminal = Terminal.of(args)
    from gatenorm_export.benching import (
        BenchRequest,
        backend_for,
        bench_markdown,
        bench_tables,
        check_comparable,
        gate_tables,
        hold_to_baseline,
        open_backend_for,
        parse_regression,
        read_baseline,
        run_bench,
    )

    request = BenchRequest(
        batches=_numbers("--batch", args.batch),
        sequences=_numbers("--sequence", args.sequence) if args.sequence is not None else (),
        repeats=args.repeats,
        max_minutes=args.max_minutes,
        order=args.order,
        control=args.control,
        command=args.command,
    )
    if args.baseline is None and (args.max_regression is not None or args.across_devices):
        raise InputError("--max-regression and --across-devices belong to --baseline; name the results to compare with")
    limit = parse_regression(args.max_regression or "3%")
    baseline = read_baseline(args.baseline) if args.baseline is not None else None
    name = args.backend or backend_for(args.base, args.pruned)
    backend = open_backend_for(name, args.base, args.pruned, **_options(args, name))
    if baseline is not None:
        # Before minutes of measuring, not after them.
        check_comparable(baseline, backend.device, str(args.baseline), across_devices=args.across_devices)
    with terminal.progress.task("check the pair"):
        pair = backend.open(args.base, args.pruned)
    report = run_bench(backend, pair, request, progress=terminal.progress)
    if args.out is not None:
        as_file = args.out.suffix == ".json"
        report.save(args.out if as_file else args.out / BENCH_NAME)
        if not as_file:
            write_text(args.out / TABLE_NAME, bench_markdown(report))
        terminal.say(f"wrote {args.out}")
    shown: list[Any] = list(bench_tables(report))
    record = report.to_object()
    gate = None
    if baseline is not None:
        gate = hold_to_baseline(report, baseline, str(args.baseline), limit, across_devices=args.across_devices)
        record["gate"] = gate.to_object()
        shown += gate_tables(gate)
    terminal.result(record, *shown)
    if gate is not None and not gate.passed:
        return int(ExitCode.REGRESSION)
    if report.control is not None and report.control.passed is False:
        return int(ExitCode.THRESHOLD)
    return int(ExitCode.OK)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[1-9]\d{0,6}", part):
            raise InputError(f"{option} {text!r}: {part!r} is no number from 1 on; write 128,512")
    return tuple(int(part) for part in parts)


def _options(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What belongs to one backend alone, refused for the others."""
    given = {"device": args.device, "precision": args.precision}
    if name == "torch":
        return given
    for option, value in given.items():
        if value is not None:
            raise InputError(f"--{option} belongs to --backend torch; {name} takes models as they are")
    if args.graphs is None:
        return {}
    if not name.startswith("tensorrt"):
        raise InputError(f"--graphs belongs to engines; {name} measures the graphs themselves")
    return {"graphs": tuple(args.graphs)}
