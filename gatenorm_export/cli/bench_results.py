"""What ``gatenorm bench`` leaves and shows of a measurement, alone or one of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from gatenorm_export.artifacts import write_text
from gatenorm_export.errors import ExitCode, InputError
from gatenorm_export.kept_work import kept_beside
from gatenorm_export.records.bench import BenchReport, GateReport

BENCH_NAME, TABLE_NAME = "bench.json", "bench.md"
COLUMNS = ("without layers", "prefill", "decode", "gate")


@dataclasses.dataclass(frozen=True)
class Gate:
    """A baseline and how much slower than it a row may be."""

    baseline: BenchReport
    name: str
    limit: float
    across_devices: bool

    def judge(self, report: BenchReport) -> GateReport:
        """Hold a report against the baseline.

        Raises:
            RefusedError: the two cannot be compared.
        """
        from gatenorm_export.benching import hold_to_baseline

        return hold_to_baseline(report, self.baseline, self.name, self.limit, across_devices=self.across_devices)


@dataclasses.dataclass(frozen=True)
class BenchPlace:
    """A pruned model to measure, where its results go, a folder or a .json file, and what they are held against."""

    pruned: Path
    backend: str
    out: Path | None
    gate: Gate | None

    def spare_baseline(self) -> None:
        """Check that the results do not take the baseline's place: after a failure the same gate would pass.

        Raises:
            InputError: they would.
        """
        results = self._results
        if results is None or self.gate is None:
            return
        baseline = Path(self.gate.name)
        if results.resolve() in {baseline.resolve(), (baseline / BENCH_NAME).resolve()}:
            raise InputError(f"-o {self.out}: would overwrite the baseline that it is held against; name another")

    def save(self, report: BenchReport) -> tuple[Path, ...]:
        """Write the results; the files.

        Raises:
            OutputError: they cannot be written.
        """
        from gatenorm_export.benching import bench_markdown

        results = self._results
        if results is None:
            return ()
        report.save(results)
        if results == self.out:
            return (results,)
        table = results.with_name(TABLE_NAME)
        write_text(table, bench_markdown(report))
        return results, table

    @property
    def _results(self) -> Path | None:
        """The file of the results, where they are written: the one that is named, or that of the folder."""
        if self.out is None or self.out.suffix == ".json":
            return self.out
        return self.out / BENCH_NAME

    @property
    def kept(self) -> Path | None:
        """Where the work of an interrupted measurement lies."""
        return kept_beside(self.out, "bench")

    def judge(self, report: BenchReport) -> GateReport | None:
        """The gate's verdict, where there is a baseline.

        Raises:
            RefusedError: the two cannot be compared.
        """
        return self.gate.judge(report) if self.gate is not None else None


def as_object(report: BenchReport, gate: GateReport | None) -> dict[str, Any]:
    """The report as JSON, with the gate's in it."""
    return report.to_object() | ({"gate": gate.to_object()} if gate is not None else {})


def shown(report: BenchReport, gate: GateReport | None) -> list[RenderableType]:
    """The same for a terminal."""
    from gatenorm_export.benching import bench_tables

    return [*bench_tables(report), *gate_lines([gate] if gate is not None else [])]


def gate_lines(gates: Iterable[GateReport]) -> list[RenderableType]:
    """What each gate has to say."""
    from gatenorm_export.benching import gate_tables

    return [line for gate in gates for line in gate_tables(gate)]


def exit_code(gates: Collection[bool | None], controls: Collection[bool | None] = ()) -> ExitCode:
    """What the verdicts of gates and of controls mean together; None is one that is not decided.

    A check that was asked for and not decided is no success: the pipeline would go on as if it had passed.
    """
    if False in gates:
        return ExitCode.REGRESSION
    if False in controls:
        return ExitCode.THRESHOLD
    return ExitCode.UNDECIDED if None in (*gates, *controls) else ExitCode.OK


def cells(report: BenchReport, gate: GateReport | None) -> tuple[str, ...]:
    """The row of one of several, by ``COLUMNS``."""
    speedups = {found.phase: f"{found.speedup:.3f} ({found.low:.2f}–{found.high:.2f})" for found in report.speedups}
    verdict = "–" if gate is None else {True: "held", False: "REGRESSION", None: "not decided"}[gate.passed]
    layers = ",".join(map(str, report.dropped)) or "–"
    return layers, speedups.get("prefill", "–"), speedups.get("decode", "–"), verdict
