"""``gatenorm inspect MODEL.onnx`` or ``gatenorm inspect MODEL.engine``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.engine_view import engine_view
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.errors import ExitCode
from gatenorm_export.records import AttentionSublayer, GraphInspection

_ENGINES = {".engine", ".plan", ".trt"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Show every attention sublayer of an ONNX graph, and what resembles one but was not matched. Of an engine: "
        "what it is, by the record beside it; neither TensorRT nor a GPU is needed.",
        examples=(
            ("a graph, whoever exported it", "gatenorm inspect base/model.onnx"),
            ("an engine", "gatenorm inspect engines/pruned.engine"),
        ),
    )
    parser.add_argument("graph", type=Path, help="a .onnx file, a folder that holds model.onnx, or an engine")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect and show."""
    terminal = Terminal.of(args)
    if _is_engine(args.graph):
        from gatenorm_export.building import read_engine

        engine = read_engine(args.graph)
        terminal.result(engine.to_object(), *engine_view(engine))
        return int(ExitCode.OK)
    from gatenorm_export.graphs import graph_file
    from gatenorm_export.inspecting import inspect_graph

    inspection = inspect_graph(graph_file(args.graph), progress=terminal.progress)
    terminal.result(inspection.to_object(), *_shown(inspection))
    return int(ExitCode.OK)


def _is_engine(path: Path) -> bool:
    """Whether a file is named like an engine, or has a record beside it."""
    if path.suffix in _ENGINES:
        return True
    return path.is_file() and path.suffix != ".onnx" and path.with_name(f"{path.name}.json").is_file()


def _shown(inspection: GraphInspection) -> list[RenderableType]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in inspection.opsets.items())
    cross = f" and {inspection.n_cross_layers} of cross-attention" if inspection.n_cross_layers else ""
    shown: list[RenderableType] = [
        f"{inspection.graph}: {inspection.n_nodes:,} nodes, opset {opsets}; {inspection.n_layers} sublayers of "
        f"self-attention{cross} before any pruning, {len(inspection.sublayers)} matched"
    ]
    if inspection.sublayers:
        shown.append(_sublayers(inspection))
    owners = [entry for entry in inspection.sublayers if entry.owns_past_length]
    for owner in owners:
        target = owner.moves_past_length_to or "nothing that is left"
        shown.append(f"the past length is read from {owner.past[0]}; without layer {owner.layer}, from {target}")
    if not owners and any(entry.past for entry in inspection.sublayers):
        shown.append("the past length is read from no cache")
    for entry in inspection.sublayers:
        if entry.refusal is not None:
            shown.append(f"cannot be removed alone: {entry.refusal}")
    if inspection.unmatched:
        shown.append(f"{len(inspection.unmatched)} more resemble attention and were not matched:")
        for no in inspection.unmatched:
            layer = f"layer {no.layer}, " if no.layer is not None else ""
            shown.append(f"  {layer}{no.node} ({no.operator}): {no.reason}")
    return shown


def _sublayers(inspection: GraphInspection) -> Table:
    several = any(entry.branch for entry in inspection.sublayers)
    table = Table(title="Attention sublayers", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ("layer", *(["branch"] if several else []), "attention", "heads", "cache", "block, sum", "weight bytes")
    for column in columns:
        table.add_column(column, justify="right" if column == "weight bytes" else "left", overflow="fold")
    for entry in inspection.sublayers:
        number = str(entry.layer) if entry.kind == "self" else f"cross {entry.layer}"
        table.add_row(
            number + ("*" if entry.owns_past_length else ""),
            *([entry.branch or ""] if several else []),
            _short(entry.operator),
            _heads(entry),
            "\n".join([*entry.past, *(f">\u00a0{name}" for name in entry.present)]),
            f"{entry.block}, {_short(entry.residual)}",
            f"{entry.weight_bytes:,}" if entry.weight_bytes is not None else "?",
        )
    notes = ["heads: queries/keys x size; Softmax was found by structure, other attention is an operator of that name"]
    if any(entry.owns_past_length for entry in inspection.sublayers):
        notes.append("* the past length is read from this layer's cache")
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def _heads(entry: AttentionSublayer) -> str:
    counts = ("?" if count is None else str(count) for count in (entry.n_heads, entry.n_kv_heads, entry.head_dim))
    return "{}/{} x {}".format(*counts)


def _short(operator: str) -> str:
    return operator.removeprefix("com.microsoft.")
