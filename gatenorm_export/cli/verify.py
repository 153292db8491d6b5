"""``gatenorm verify BUNDLE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich import box
from rich.table import Table

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.errors import ExitCode
from gatenorm_export.records import BundleVerification


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Check a bundle: every file is as it was and none was added, the manifest is true of the graph, ONNX Runtime "
        "loads it, and it continues a prompt as it did when it was bundled.\n\n"
        "Whoever can write a bundle can also seal it anew: only --seal, with the seal that `gatenorm bundle` printed, "
        "tells that.",
        examples=(
            ("everything that this machine can check", "gatenorm verify bundle/"),
            ("against the seal that was kept elsewhere", "gatenorm verify bundle/ --seal 3f2a..."),
            ("files and manifest, where no runtime is installed", "gatenorm verify bundle/ --files-only --json"),
        ),
        codes=(ExitCode.TAMPERED, ExitCode.UNFAITHFUL),
    )
    parser.add_argument("bundle", type=Path, help="the folder that `gatenorm bundle` wrote")
    parser.add_argument("--seal", metavar="SHA256", help="the seal that `gatenorm bundle` printed")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="the checkpoint that the bundle was made from: prove anew against it that the graph is faithful",
    )
    parser.add_argument("--files-only", action="store_true", help="check the files and the manifest, run nothing")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, show every finding, and fail when one is bad."""
    terminal = Terminal.of(args)
    from gatenorm_export.bundling import VerifyRequest, verify_bundle

    request = VerifyRequest(args.bundle, seal=args.seal, files_only=args.files_only, model=args.model)
    verification = verify_bundle(request, progress=terminal.progress)
    terminal.result(verification.to_object(), _table(verification))
    bad = (f"{check.check}: {check.finding}" for check in verification.checks if check.passed is False)
    return terminal.end(_exit_code(verification), f"{verification.bundle} is not good: {'; '.join(bad)}")


def _exit_code(verification: BundleVerification) -> ExitCode:
    """What was touched outranks all else: its figures mean nothing."""
    if not verification.intact:
        return ExitCode.TAMPERED
    failed = {check.check for check in verification.checks if check.passed is False}
    if "load" in failed:
        return ExitCode.BAD_INPUT
    return ExitCode.UNFAITHFUL if failed else ExitCode.OK


def _table(verification: BundleVerification) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=verification.bundle, title_justify="left")
    for column in ("check", "", "finding"):
        table.add_column(column, overflow="fold")
    words = {True: "good", False: "BAD", None: "not checked"}
    for check in verification.checks:
        table.add_row(check.check, words[check.passed], check.finding)
    return table
