"""``gatenorm doctor``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.errors import ExitCode
from gatenorm_export.records.doctor import DoctorReport, StageFinding

_STATES = {"ready": "yes", "missing": "no", "unfit": "unfit"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Say which stages this machine can run, with versions, and what each missing part needs. Runtimes are loaded "
        "for a moment, each in a process of its own; torch is not.",
        examples=(
            ("everything", "gatenorm doctor"),
            (
                "a gate at the head of a pipeline: fails with 4 unless both can run",
                "gatenorm doctor --stage compare --stage build --json --quiet",
            ),
        ),
    )
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="NAME",
        help="exit with 4 unless this stage, such as bench-ort-cuda, or one stage of this verb, can run; may be given "
        "again",
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine and show; fail where a stage that was asked for cannot run."""
    terminal = Terminal.of(args)
    from gatenorm_export.doctoring import examine

    with terminal.progress.task("examine this machine"):
        report = examine(tuple(args.stage))
    terminal.result(report.to_object(), *_shown(report))
    lacking = [f"{stage.name} cannot run here: {'; '.join(stage.lacks)}" for stage in _asked(report) if not stage.ready]
    return terminal.end(ExitCode.MISSING_PART if report.asked_ready is False else ExitCode.OK, *lacking)


def _asked(report: DoctorReport) -> list[StageFinding]:
    """The stages that were asked for by name or verb, or all."""
    return [stage for stage in report.stages if not report.asked or {stage.name, stage.verb} & {*report.asked}]


def _shown(report: DoctorReport) -> list[RenderableType]:
    stages = _asked(report)
    return [
        *_machine(report),
        _places(report),
        _parts(report),
        *_packages(report),
        _stages(stages),
        *_remedies(stages),
    ]


def _machine(report: DoctorReport) -> list[Text]:
    machine = report.machine
    memory = "unknown" if machine.memory_bytes is None else _gb(machine.memory_bytes)
    free = "" if machine.free_memory_bytes is None else f", {_gb(machine.free_memory_bytes)} free"
    return [
        Text(f"gatenorm {report.versions.get('gatenorm', '')}, Python {machine.python} in {machine.executable}"),
        Text(f"{machine.processor}, {machine.n_cpus} usable; memory {memory}{free}; {machine.system}"),
    ]


def _places(report: DoctorReport) -> Table:
    table = _table("Folders", "", "", "free")
    for place in report.places:
        free = "not writable" if not place.writable else "" if place.free_bytes is None else _gb(place.free_bytes)
        _add(table, place.name, place.path, free)
    return table


def _parts(report: DoctorReport) -> Table:
    table = _table("Parts", "", "there", "version", "")
    for part in report.parts:
        if part.kind != "package":
            _add(table, part.name, _STATES[part.state], part.version or "", part.detail)
    return table


def _packages(report: DoctorReport) -> list[Text]:
    packages = [part for part in report.parts if part.kind == "package"]
    states = (
        ("installed", [f"{part.name} {part.version}" for part in packages if part.state == "ready"]),
        ("unfit", [f"{part.name} {part.version} ({part.detail})" for part in packages if part.state == "unfit"]),
        ("not installed", [part.name for part in packages if part.state == "missing"]),
    )
    return [Text(f"{state}: {', '.join(names)}") for state, names in states if names]


def _stages(stages: Sequence[StageFinding]) -> Table:
    table = _table("Stages", "", "runs", "", "lacks")
    for stage in stages:
        _add(table, stage.name, "yes" if stage.ready else "no", stage.does, "; ".join(stage.lacks))
    return table


def _remedies(stages: Sequence[StageFinding]) -> list[Text]:
    """Each remedy once, with the stages that it is for."""
    wanted: dict[str, list[str]] = {}
    for stage in stages:
        for remedy in stage.remedies:
            wanted.setdefault(remedy, []).append(stage.name)
    return [Text(f"{', '.join(names)}: {remedy}") for remedy, names in wanted.items()]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    # As plain text: [ort] in a command would be markup.
    table.add_row(*map(Text, cells))


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
