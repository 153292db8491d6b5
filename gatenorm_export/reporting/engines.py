"""What a report says of engines: what was built, which shapes they take, and whether they are right."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from gatenorm_export.records import (
    ComparisonReport,
    ConversionCheck,
    EngineAccuracy,
    EngineArtifact,
    OutputAccuracy,
    Profile,
)
from gatenorm_export.reporting.formatting import count, milliseconds, number, percent, size, verdict_word
from gatenorm_export.reporting.material import ReportMaterial
from gatenorm_export.reporting.speed import Bar, position
from gatenorm_export.reporting.tables import Cells, Column, Table

Tone = Literal["plain", "good", "bad"]

SHOWN = 12
"""Bars for so many outputs: those nearest to their tolerance. The table has all of them."""


@dataclass(frozen=True)
class AccuracyView:
    """One engine against its graph. ``passed`` None is not run or not judged, and ``words`` say why."""

    title: str
    passed: bool | None
    words: str
    bars: tuple[Bar, ...]
    bars_words: str
    outputs: Table | None
    conversion: Table | None
    conversion_words: str


def accuracy_views(material: ReportMaterial) -> tuple[AccuracyView, ...]:
    """Every engine that was compared with its graph; what its conversion cost comes from its own record otherwise."""
    return tuple(_accuracy(engine) for engine in material.comparison.engine_accuracy)


def accuracy_card(comparison: ComparisonReport) -> tuple[str, str, Tone] | None:
    """Value, note and tone of the key figure; None where no engines were given."""
    checked = comparison.engine_accuracy
    if not checked:
        return None
    wrong = [engine for engine in checked if engine.passed is False]
    if wrong:
        return "no", f"{' and '.join(engine.engine for engine in wrong)}: see Engines", "bad"
    open_ones = [engine for engine in checked if engine.passed is None]
    if open_ones:
        value = "not run" if all(not engine.outputs for engine in open_ones) else "not judged"
        return value, "see Engines for the reason", "plain"
    nearest = max((engine.worst for engine in checked if engine.worst is not None), key=lambda entry: entry.share)
    return "yes", f"largest error {percent(nearest.share)} of its tolerance ({nearest.output})", "good"


def _accuracy(engine: EngineAccuracy) -> AccuracyView:
    # The first one is the logits, which a reader asks for before any cache tensor.
    nearest = sorted(engine.outputs[1:], key=lambda entry: (entry.passed is not False, -entry.share))
    shown = [*engine.outputs[:1], *nearest][:SHOWN]
    source = ""
    if engine.outputs:
        source = (
            f" {engine.flavour} in {engine.precision} on {engine.device}, against {engine.reference} on the graph that "
            f"it was built from, both with a cache of their own: {_steps(engine.steps)}. "
            f"Tolerance: {engine.tolerance_from}."
        )
    words = f"{engine.reason[:1].upper()}{engine.reason[1:]}.{source}"
    known = all(entry.tolerance is not None for entry in shown)
    scale = "The whole bar is the tolerance." if known else "The whole bar is the output's range."
    if len(shown) < len(engine.outputs):
        scale += f" Shown are {len(shown)} of {count(len(engine.outputs))} outputs: the first, and those nearest to it."
    return AccuracyView(
        title=f"Accuracy of the {engine.role} engine",
        passed=engine.passed,
        words=words,
        bars=tuple(Bar(entry.output, position(entry.share, 0, 1), _share(entry)) for entry in shown),
        bars_words=scale if shown else "",
        outputs=_outputs_table(engine) if engine.outputs else None,
        conversion=_conversion_table(engine.role, engine.conversion) if engine.conversion is not None else None,
        conversion_words=_conversion_words(engine),
    )


def _steps(steps: tuple[str, ...]) -> str:
    decoded = sum(step.startswith("decode") for step in steps)
    others = [step for step in steps if not step.startswith("decode")]
    return f"{', '.join(others)} and {decoded} decode steps"


def _share(entry: OutputAccuracy) -> str:
    sign = {True: "✓ ", False: "✗ ", None: ""}[entry.passed]
    if not math.isfinite(entry.share):
        return f"{sign}{'missing' if entry.worst is None else 'not finite'}"
    return f"{sign}{number(entry.share)} times" if entry.share > 1 else f"{sign}{percent(entry.share)}"


def _outputs_table(engine: EngineAccuracy) -> Table:
    rows = []
    for entry in engine.outputs:
        element = entry.worst
        where = f"{element.step}, [{', '.join(map(str, element.index))}]" if element is not None else entry.note
        rows.append(
            (
                entry.output,
                number(entry.max_abs_error),
                number(entry.tolerance) if entry.tolerance is not None else "not known",
                where,
                number(element.expected, 5) if element is not None else "–",
                number(element.got, 5) if element is not None else "–",
                "– not judged" if entry.passed is None else verdict_word(entry.passed),
            )
        )
    columns = (
        Column("Output"),
        Column("Worst error", "number"),
        Column("Tolerance", "number"),
        Column("Where"),
        Column("Graph", "number"),
        Column("Engine", "number"),
        Column("Result"),
    )
    return Table(f"Every output of the {engine.role} engine, with its worst element", columns, tuple(rows))


def _conversion_table(role: str, check: ConversionCheck) -> Table:
    rows = tuple(
        (entry.output, number(entry.max_abs), number(entry.range), percent(entry.relative)) for entry in check.outputs
    )
    numbers = tuple(Column(name, "number") for name in ("Largest difference", "Range", "Share of range"))
    return Table(f"Conversion error of the {role} engine's graph, pruning apart", (Column("Output"), *numbers), rows)


def _conversion_words(engine: EngineAccuracy) -> str:
    check = engine.conversion
    if check is not None:
        return (
            f"The error that lowering and {engine.precision} make by themselves, measured on the CPU before the build "
            f"between two graphs with the same layers: {check.how}. What pruning costs is under Quality."
        )
    if engine.conversion_unmeasured:
        return f"What the conversion to {engine.precision} costs was not measured: {engine.conversion_unmeasured}."
    return ""


def engines_table(material: ReportMaterial) -> Table:
    """Every engine that was built."""
    rows = tuple(
        (
            f"{engine.engine} ({material.role_of(engine)})",
            size(engine.bytes),
            f"{engine.flavour} {engine.flavour_version}",
            engine.precision,
            count(engine.n_network_layers),
            f"{engine.n_inputs} / {engine.n_outputs}",
            milliseconds(1000 * engine.build_seconds),
            engine.built_on,
        )
        for engine in material.engines
    )
    columns = (
        Column("Engine"),
        Column("Size", "number"),
        Column("Built with"),
        Column("Precision"),
        Column("Network layers", "number"),
        Column("Inputs / outputs", "number"),
        Column("Build time", "number"),
        Column("Built on"),
    )
    return Table("TensorRT engines", columns, rows)


def profiles_table(engine: EngineArtifact, role: str) -> Table:
    """The optimisation profiles of one engine; inputs with equal bounds share a row."""
    rows = tuple(cells for profile in engine.profiles for cells in _profile_rows(profile))
    columns = (Column("Profile"), Column("Inputs"), *(Column(name, "code") for name in ("Min", "Typical", "Max")))
    return Table(f"Shapes the {role} engine accepts", columns, rows)


def _profile_rows(profile: Profile) -> list[Cells]:
    inputs: dict[Cells, list[str]] = defaultdict(list)
    for bound in profile.bounds:
        inputs[tuple(" × ".join(map(str, shape)) for shape in (bound.min, bound.opt, bound.max))].append(bound.input)
    return [
        (profile.name, names[0] if len(names) == 1 else f"{len(names)} inputs: {names[0]} to {names[-1]}", *shapes)
        for shapes, names in inputs.items()
    ]
