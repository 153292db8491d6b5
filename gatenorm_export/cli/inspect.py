"""``gatenorm inspect MODEL.onnx``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_output
from gatenorm_export.errors import ExitCode
from gatenorm_export.records import AttentionSublayer, GraphInspection


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = "Show every attention sublayer of an ONNX graph, and what resembles one but was not matched."
    parser.epilog = "example:\n  gatenorm inspect base/model.onnx"
    parser.add_argument("graph", type=Path, help="a .onnx file, or a folder that holds model.onnx")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect and show."""
    terminal = Terminal.of(args)
    from gatenorm_export.graphs import graph_file
    from gatenorm_export.inspecting import inspect_graph

    inspection = inspect_graph(graph_file(args.graph), progress=terminal.progress)
    terminal.result(inspection.to_object(), *_shown(inspection))
    return int(ExitCode.OK)


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
    table = Table(title="Attention sublayers", title_justify="left")
    columns = (
        "layer",
        *(["branch"] if several else []),
        "found by",
        "operator",
        "heads",
        "KV heads",
        "size",
        "past",
        "present",
    )
    for column in (*columns, "block", "sum", "weight bytes"):
        table.add_column(column, justify="right" if column in {"heads", "KV heads", "size", "weight bytes"} else "left")
    for entry in inspection.sublayers:
        number = str(entry.layer) if entry.kind == "self" else f"cross {entry.layer}"
        table.add_row(
            number + ("*" if entry.owns_past_length else ""),
            *([entry.branch or ""] if several else []),
            "structure" if entry.operator == "Softmax" else "operator",
            _operator(entry),
            *(str(count) if count is not None else "?" for count in (entry.n_heads, entry.n_kv_heads, entry.head_dim)),
            "\n".join(entry.past),
            "\n".join(entry.present),
            entry.block,
            entry.residual.removeprefix("com.microsoft."),
            f"{entry.weight_bytes:,}" if entry.weight_bytes is not None else "?",
        )
    if any(entry.owns_past_length for entry in inspection.sublayers):
        table.caption = "* the past length is read from this layer's cache"
    return table


def _operator(entry: AttentionSublayer) -> str:
    return "softmax" if entry.operator == "Softmax" else entry.operator.removeprefix("com.microsoft.")
