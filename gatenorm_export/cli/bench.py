"""``gatenorm bench BASE PRUNED...``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatenorm_export.cli.batches import BATCH_NAME, batch_folder, batch_table, names_of, remembering
from gatenorm_export.cli.bench_results import (
    BENCH_NAME,
    COLUMNS,
    TABLE_NAME,
    BenchPlace,
    Gate,
    as_object,
    cells,
    exit_code,
    gate_lines,
    shown,
)
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.executor_options import add_executor, check_executor_options
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.errors import ExitCode, UsageError
from gatenorm_export.kept_work import forget
from gatenorm_export.progress import Progress
from gatenorm_export.records.bench import BenchReport

if TYPE_CHECKING:
    from gatenorm_export.benching import BenchRequest
    from gatenorm_export.executing import Batch, Outcome


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    from gatenorm_export.benching.choosing import BACKENDS

    describe(
        parser,
        "Time prefill and decode of a pruned model and its base in turns. The result is their ratio with its interval, "
        "beside what the removed bytes and operations predict.",
        examples=(
            ("two graphs on the CPU", "gatenorm bench out/base out/pruned -o out/"),
            (
                "two engines",
                "gatenorm bench base.engine pruned.engine --backend tensorrt --batch 1,4 --sequence 512,2048 -o a.json",
            ),
            ("a checkpoint and a plan, in torch", "gatenorm bench model/ plan.json --backend torch"),
            (
                "several pruned graphs, on a Ray cluster",
                "gatenorm bench base/ drop4/ drop8/ -o speed/ --executor ray://cluster:10001 --ray-resources cpus=8",
            ),
            (
                "a gate for a pipeline: no row may be 3 % slower than it was",
                "gatenorm bench out/base out/pruned --baseline results.json --max-regression 3%",
            ),
        ),
        codes=(ExitCode.THRESHOLD, ExitCode.REGRESSION, ExitCode.UNDECIDED),
    )
    parser.add_argument("base", type=Path, help="the unpruned graph or engine; with torch, a checkpoint")
    parser.add_argument(
        "pruned", type=Path, nargs="+", help="pruned graphs or engines, each beside BASE; with torch, plans"
    )
    parser.add_argument("--backend", choices=tuple(BACKENDS), help="default: by the files, ort-cpu for graphs")
    add_out(parser, f"a folder ({BENCH_NAME}, {TABLE_NAME}) or a .json file; of several, a folder of folders")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument("--batch", metavar="LIST", default="1", help="sequences at once, such as 1,4 (default: 1)")
    measured.add_argument(
        "--sequence",
        metavar="LIST",
        help="prompt and cache lengths in tokens (default: 64,256,512; on a GPU 512,1024,2048,4096)",
    )
    measured.add_argument(
        "--repeats", type=int, metavar="N", help="pairs of calls, a multiple of 8 (default: what fits)"
    )
    measured.add_argument(
        "--max-minutes", type=float, default=5.0, metavar="M", help="for timing, loading apart (default: 5)"
    )
    measured.add_argument(
        "--order",
        choices=("auto", "alternate", "sequential"),
        default="auto",
        help="in turns, or one model after the other where memory does not hold both (default: auto)",
    )
    measured.add_argument(
        "--control",
        type=Path,
        metavar="NATIVE",
        help="a model made without those layers; whether the pruned one is within 2 %% of it (if not: exit code 11, "
        "not decided: 15)",
    )
    measured.add_argument(
        "--graphs", type=Path, nargs=2, metavar=("BASE", "PRUNED"), help="the graphs that engines were built from"
    )
    measured.add_argument("--device", choices=("cpu", "cuda"), help="of torch (default: a GPU if there is one)")
    measured.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="of torch (default: fp32, GPU fp16)")
    gate = parser.add_argument_group("regression gate (failed: exit code 12, not decided: 15)")
    gate.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="results of an earlier bench to hold this against; of several, the folder of theirs",
    )
    gate.add_argument("--max-regression", metavar="PERCENT", help="how much slower a row may be (default: 3%%)")
    gate.add_argument("--across-devices", action="store_true", help="compare ratios although the machines differ")
    add_executor(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write, and fail the pipeline where the gate or the control does."""
    terminal = Terminal.of(args)
    check_executor_options(args)
    request, places = _request(args), _places(args)
    if len(places) == 1 and args.executor == "local":
        (place,) = places.values()
        report = _measure(args, request, place, terminal.progress)
        place.save(report)
        forget(place.kept)
        return _end(args, terminal, place, report)
    if len(places) == 1:
        ((name, place),) = places.items()
        batch, reports = _measure_tasks(args, request, places, _beside(args.out), terminal.progress)
        batch.raise_failures()
        return _end(args, terminal, place, reports[name])
    out = batch_folder(args.out, verb="bench")
    batch, reports = _measure_tasks(args, request, places, out, terminal.progress)
    summary = batch.report("bench", args.command)
    summary.save(out / BATCH_NAME)
    gates = {name: places[name].judge(report) for name, report in reports.items()}
    rows = {name: cells(report, gates[name]) for name, report in reports.items()}
    objects = {name: as_object(report, gates[name]) for name, report in reports.items()}
    judged = [gate for gate in gates.values() if gate is not None]
    lost = [gate for gate in judged if not gate.passed]
    table = batch_table(summary, f"Speed-ups over {args.base}", COLUMNS, rows)
    terminal.result(summary.to_object() | {"benches": objects}, table, *gate_lines(lost))
    batch.raise_failures()
    lost_words = (f"{name}: {gate.sentence}" for name, gate in gates.items() if gate is not None and not gate.passed)
    return terminal.end(exit_code([gate.passed for gate in judged]), *lost_words)


def _request(args: argparse.Namespace) -> BenchRequest:
    from gatenorm_export.benching import BenchRequest

    if args.control is not None and len(args.pruned) > 1:
        raise UsageError("--control holds one pruned model against one native model; name one pruned model")
    return BenchRequest(
        batches=_numbers("--batch", args.batch),
        sequences=_numbers("--sequence", args.sequence) if args.sequence is not None else (),
        repeats=args.repeats,
        max_minutes=args.max_minutes,
        order=args.order,
        control=args.control,
        command=args.command,
    )


def _places(args: argparse.Namespace) -> dict[str, BenchPlace]:
    """Each pruned model by a name, with its backend, its results' place and its baseline."""
    from gatenorm_export.benching import backend_for

    several = len(args.pruned) > 1
    found = names_of(args.pruned) if several else {args.pruned[0].name: args.pruned[0]}
    out = batch_folder(args.out, verb="bench") if several else args.out
    places = {
        name: BenchPlace(
            pruned=path,
            backend=args.backend or backend_for(args.base, path),
            out=out / name if several else out,
            gate=_gate(args, args.baseline / name if several and args.baseline is not None else args.baseline),
        )
        for name, path in found.items()
    }
    for place in places.values():
        place.spare_baseline()
    return places


def _gate(args: argparse.Namespace, baseline: Path | None) -> Gate | None:
    from gatenorm_export.benching import parse_regression, read_baseline

    if baseline is None:
        if args.max_regression is not None or args.across_devices:
            raise UsageError(
                "--max-regression and --across-devices belong to --baseline; name the results to compare with"
            )
        return None
    limit = parse_regression(args.max_regression or "3%")
    return Gate(read_baseline(baseline), str(baseline), limit, args.across_devices)


def _beside(out: Path | None) -> Path:
    """The folder of one result, where an executor keeps what it has done."""
    if out is None:
        raise UsageError("an executor keeps what it has done beside the results; name a place for them with -o")
    return out.parent if out.suffix == ".json" else out


def _measure(args: argparse.Namespace, request: BenchRequest, place: BenchPlace, progress: Progress) -> BenchReport:
    """Measure here, in this process."""
    from gatenorm_export.benching import bench_points, check_comparable, check_rows, open_backend_for, run_bench

    backend = open_backend_for(place.backend, args.base, place.pruned, **_options(args, place.backend))
    if place.gate is not None:
        # Before minutes of measuring, not after them.
        gate = place.gate
        check_comparable(gate.baseline, backend.device, gate.name, across_devices=gate.across_devices)
    with progress.task("check the pair"):
        pair = backend.open(args.base, place.pruned)
    if place.gate is not None:
        keys = {(point.phase, point.batch, point.sequence) for point in bench_points(backend, pair, request)}
        check_rows(place.gate.baseline, pair.n_layers, keys, place.gate.name)
    return run_bench(backend, pair, request, kept_at=place.kept, progress=progress)


def _measure_tasks(
    args: argparse.Namespace, request: BenchRequest, places: dict[str, BenchPlace], out: Path, progress: Progress
) -> tuple[Batch, dict[str, BenchReport]]:
    """Have every pair measured where ``--executor`` says."""
    from gatenorm_export.executing import bench_task, run_batch

    reports: dict[str, BenchReport] = {}
    with remembering(args, out, progress) as executor:
        tasks = [
            bench_task(
                args.base,
                place.pruned,
                backend=place.backend,
                request=request,
                options=_options(args, place.backend),
                name=name,
            ).on_machines(executor)
            for name, place in places.items()
        ]

        def save(outcome: Outcome) -> tuple[Path, ...]:
            report = BenchReport.model_validate(outcome.result()).model_copy(update={"command": args.command})
            reports[outcome.task.name] = report
            return places[outcome.task.name].save(report)

        batch = run_batch(tasks, executor, save, out=out, progress=progress)
    return batch, {name: reports[name] for name in places if name in reports}


def _end(args: argparse.Namespace, terminal: Terminal, place: BenchPlace, report: BenchReport) -> int:
    """Show one measurement; the exit code that it and its gate mean."""
    if args.out is not None:
        terminal.say(f"wrote {args.out}")
    gate = place.judge(report)
    terminal.result(as_object(report, gate), *shown(report, gate))
    checks = [check for check in (gate, report.control) if check is not None]
    code = exit_code(
        [gate.passed] if gate is not None else [], [report.control.passed] if report.control is not None else []
    )
    return terminal.end(code, *(check.sentence for check in checks if not check.passed))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[1-9]\d{0,6}", part):
            raise UsageError(f"{option} {text!r}: {part!r} is no number from 1 on; write 128,512")
    return tuple(int(part) for part in parts)


def _options(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What belongs to one backend alone, refused for the others."""
    given = {"device": args.device, "precision": args.precision}
    if name == "torch":
        return given
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"--{option} belongs to --backend torch; {name} takes models as they are")
    if args.graphs is None:
        return {}
    if not name.startswith("tensorrt"):
        raise UsageError(f"--graphs belongs to engines; {name} measures the graphs themselves")
    return {"graphs": tuple(args.graphs)}
