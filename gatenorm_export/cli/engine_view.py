"""An engine as a person reads it in the terminal, from its record alone."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table

from gatenorm_export.records import EngineArtifact, Profile


def built_line(engine: Path, record: EngineArtifact) -> str:
    """What a build made, in one line."""
    took = "taken from the build cache" if record.from_cache else f"in {record.build_seconds:.0f} s"
    peak = f", {record.peak_bytes / 1e9:,.2f} GB of memory" if record.peak_bytes and not record.from_cache else ""
    return (
        f"built {engine} with {record.flavour} {record.flavour_version} in {record.precision}, {took}{peak}: "
        f"{record.bytes / 1e6:,.0f} MB, {record.n_network_layers:,} layers, {record.n_inputs} inputs, "
        f"{record.n_outputs} outputs; built on {record.built_on}"
    )


def preparation_lines(record: EngineArtifact) -> list[str]:
    """What was lowered and converted before the build, and what that changed."""
    prepared = record.prepared
    if prepared is None:
        return []
    lines = [f"lowered: {entry.count} {entry.operator} to {entry.into}" for entry in prepared.lowered]
    if prepared.wide:
        kept = ", ".join(f"{count} {operator}" for operator, count in sorted(prepared.wide.items()))
        lines.append(f"kept in fp32: {kept}")
    if prepared.check is not None:
        worst = prepared.check.worst
        lines.append(
            f"the conversion's own error on the CPU: {worst.relative:.1e} of the range of {worst.output} at most "
            f"(largest difference {worst.max_abs:.2e}), pruning apart"
        )
    elif prepared.unmeasured:
        lines.append(f"the conversion's own error was not measured: {prepared.unmeasured}")
    return lines


def engine_view(record: EngineArtifact) -> list[RenderableType]:
    """Everything that an engine's record tells."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _facts(record):
        table.add_row(label, value)
    return [
        f"{record.engine}: an engine of {record.flavour} {record.flavour_version}",
        table,
        *preparation_lines(record),
        _profiles(record),
    ]


def _facts(record: EngineArtifact) -> list[tuple[str, str]]:
    runs_on = ", ".join(entry.replace("+", " and newer") for entry in record.capabilities)
    facts = [
        ("size", f"{record.bytes:,} bytes"),
        ("sha256", record.sha256),
        ("precision", record.precision),
        ("built from", f"{record.parent_path or 'a graph'}, sha256 {record.parent_sha256}"),
        (
            "pruned from",
            ", ".join(record.ancestors or ()) or ("nothing" if record.ancestors is not None else "not known"),
        ),
        ("attention", _attention(record)),
        ("network", f"{record.n_network_layers:,} layers, {record.n_inputs} inputs, {record.n_outputs} outputs"),
        ("runs on", f"compute capability {runs_on}" if runs_on else "not recorded"),
        ("built on", record.built_on),
        ("build", f"{record.build_seconds:.0f} s" + _peak(record)),
    ]
    if record.weight_bytes is not None:
        facts.insert(7, ("weights", f"{record.weight_bytes:,} bytes"))
    return facts


def _attention(record: EngineArtifact) -> str:
    if record.n_layers is None or record.dropped is None:
        return "not known: the graph had no manifest"
    kept = record.n_layers - len(record.dropped)
    without = f", without layers {', '.join(map(str, record.dropped))}" if record.dropped else ""
    return f"{kept} of {record.n_layers} sublayers{without}"


def _peak(record: EngineArtifact) -> str:
    return f", at most {record.peak_bytes / 1e9:,.2f} GB of memory" if record.peak_bytes else ""


def _profiles(record: EngineArtifact) -> Table:
    table = Table(title="Shapes it takes", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("profile", "inputs", "min", "typical", "max"):
        table.add_column(column, overflow="fold")
    for profile in record.profiles:
        for row in _rows(profile):
            table.add_row(*row)
    return table


def _rows(profile: Profile) -> list[tuple[str, ...]]:
    """Inputs with equal bounds share a row."""
    inputs: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for bound in profile.bounds:
        inputs[tuple(" x ".join(map(str, shape)) for shape in (bound.min, bound.opt, bound.max))].append(bound.input)
    return [
        (profile.name, ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)})", *shapes)
        for shapes, names in inputs.items()
    ]
