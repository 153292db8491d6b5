"""``gatenorm report RUN``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_output
from gatenorm_export.errors import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = "Write report.json, report.md and report.html from the files of a run folder."
    parser.epilog = "example:\n  gatenorm report out/"
    parser.add_argument("run_folder", type=Path, help="the folder that `gatenorm run --out` filled")
    parser.add_argument("-o", "--out", type=Path, help="where to write the report (default: the run folder)")
    add_output(parser)
    parser.set_defaults(run=run)


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
