"""``gatenorm report RUN``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.errors import ExitCode
from gatenorm_export.locking import folder_lock


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Write report.json, report.md and report.html from the files of a run folder.",
        examples=(
            ("in the run folder", "gatenorm report out/"),
            ("elsewhere, as an artifact of a pipeline", "gatenorm report out/ --json -o public/"),
        ),
    )
    parser.add_argument("run_folder", type=Path, help="the folder that `gatenorm run --out` filled")
    add_out(parser, "where to write the report (default: the run folder)", locks=_locks)
    add_output(parser)
    parser.set_defaults(run=run)


def _locks(args: argparse.Namespace) -> tuple[Path, ...]:
    # A folder that is not there holds no run, and none is made to say so.
    folder: Path = args.out or args.run_folder
    return (folder_lock(folder),) if args.out is not None or folder.is_dir() else ()


def run(args: argparse.Namespace) -> int:
    """Write the report again."""
    terminal = Terminal.of(args)
    from gatenorm_export.reporting import write_report
    from gatenorm_export.run_folder import report_material

    material = report_material(args.run_folder)
    paths = write_report(args.out or args.run_folder, material)
    terminal.result(
        {"schema": 1, "kind": "report", "files": [str(path) for path in paths], "verdict": material.comparison.verdict},
        material.comparison.verdict,
        *(f"wrote {path}" for path in paths),
    )
    return int(ExitCode.OK)
