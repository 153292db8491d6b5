"""``gatenorm run MODEL``: the whole job."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.bundle import bundle_lines
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.engine_options import add_build, add_profiles, build_options, shape_request
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import (
    add_calibration,
    add_comparison,
    add_drop,
    add_flavour,
    add_guard,
    add_kv_names,
    add_output,
    add_repair,
    add_tower,
    comparison_request,
    corpus_request,
    drop_request,
    guard_request,
)
from gatenorm_export.cli.outputs import add_out, folders
from gatenorm_export.cli.plan import guard_lines, plan_line
from gatenorm_export.cli.score import add_model, score_table
from gatenorm_export.cli.tables import comparison_tables, exit_code_of, failures_of
from gatenorm_export.errors import ExitCode, UsageError
from gatenorm_export.locking import file_lock
from gatenorm_export.run_folder import GRAPHS

_WITHIN = Path("bundle")
"""The value of a ``--bundle`` without one; told from a folder of that name by being this object."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "The main job: score, plan, export, prune, build, compare and report, into one folder.\n\n"
        "A second run into the same folder reuses every stage whose inputs have not changed, so that an interrupted "
        "run goes on where it was. Without TensorRT no engines are built, and the report says so.",
        examples=(
            ("remove the four lowest scores of the demo model", "gatenorm run smollm2 --drop 4 --out out/"),
            (
                "choose by measuring, put a linear map in place of what goes, fail where perplexity grows by a fifth",
                "gatenorm run model/ --drop 8 --guard --repair linear --max-ppl-ratio 1.2 --json --out out/",
            ),
            (
                "an engine in half precision for prompts of up to 1024 tokens",
                "gatenorm run model/ --drop 4 --flavour tensorrt-rtx --precision fp16 --prompt 1024 --out out/",
            ),
        ),
        codes=(ExitCode.UNFAITHFUL, ExitCode.THRESHOLD),
    )
    add_model(parser)
    add_out(parser, "the folder for everything", required=True, locks=_locks)
    parser.add_argument(
        "--bundle",
        type=Path,
        nargs="?",
        const=_WITHIN,
        metavar="DIR",
        help="put everything that a server needs into this folder too, where proof and limits hold (gatenorm bundle); "
        "without DIR into bundle/ within the run's folder",
    )
    parser.add_argument("--force", action="store_true", help="do every stage again")
    add_drop(parser, required=True)
    add_tower(parser)
    add_guard(parser)
    add_repair(parser)
    add_calibration(parser)
    add_kv_names(parser)
    add_flavour(parser, choices=("auto", "tensorrt", "tensorrt-rtx", "none"), default="auto")
    add_profiles(parser)
    add_build(parser)
    add_comparison(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def _locks(args: argparse.Namespace) -> tuple[Path, ...]:
    """The run's folders, and what the bundle replaces."""
    bundle = _bundle_of(args)
    return (*folders(*GRAPHS, "engines")(args), *((file_lock(bundle),) if bundle is not None else ()))


def _bundle_of(args: argparse.Namespace) -> Path | None:
    """The folder of the bundle that is asked for."""
    given: Path | None = args.bundle
    return Path(args.out, "bundle") if given is _WITHIN else given


def run(args: argparse.Namespace) -> int:
    """Run the pipeline, show its result, and fail when the proof or a limit fails."""
    terminal = Terminal.of(args)
    from gatenorm_export.pipeline import RunRequest, run_pipeline
    from gatenorm_export.repairs import parse_repair

    if args.calibration_text is not None and not args.guard and args.repair == "none":
        raise UsageError("the calibration text is for --guard and --repair; add one, or leave the text out")

    bundle = _bundle_of(args)
    request = RunRequest(
        model=args.model,
        out=args.out,
        drop=drop_request(args),
        kv_names=args.kv_names,
        flavour=args.flavour,
        shapes=shape_request(args),
        comparison=comparison_request(args),
        repair=parse_repair(args.repair),
        calibration=corpus_request(args),
        guard=guard_request(args),
        build=build_options(args),
        force=args.force,
        bundle=bundle,
    )
    result = run_pipeline(request, progress=terminal.progress)
    material = result.material
    terminal.result(
        result.to_object(),
        score_table(result.scores, dict.fromkeys(result.plan.drop, "drop")),
        result.scores.trend.sentence,
        plan_line(result.plan),
        *guard_lines(result.plan),
        *comparison_tables(material.comparison),
        f"report: {args.out / 'report.html'}",
        *(bundle_lines(bundle, result.bundle) if bundle is not None and result.bundle is not None else []),
    )
    return terminal.end(exit_code_of(material.comparison), *failures_of(material.comparison))
