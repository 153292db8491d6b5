"""``gatenorm prune MODEL.onnx``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_calibration, add_kv_names, add_output, add_repair, corpus_request
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.errors import ExitCode, UsageError
from gatenorm_export.records import PrunedGraph, PrunePlan

if TYPE_CHECKING:
    from gatenorm_export.repairs import Repaired


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Remove attention sublayers from an ONNX graph: nodes, weights and KV cache. Needs neither the checkpoint nor "
        "torch; --repair needs the tokenizer beside the graph.",
        examples=(
            ("what a plan says", "gatenorm prune base/model.onnx --plan plan.json -o pruned/"),
            (
                "these layers, in a graph that points into the weights of the first",
                "gatenorm prune base/model.onnx --layers 3,7-9 --weights share -o base/pruned.onnx",
            ),
            (
                "with a matrix in place of each, fitted on shipped text",
                "gatenorm prune base/model.onnx --plan plan.json --repair linear -o repaired/",
            ),
        ),
    )
    parser.add_argument("graph", type=Path, help="a .onnx file, or a folder that holds model.onnx")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--plan", type=Path, help="plan.json, as `gatenorm plan` writes it")
    choice.add_argument("--layers", metavar="LIST", help="exactly these layers, such as 3,7-9")
    parser.add_argument(
        "--cross",
        metavar="LIST",
        default="",
        help="these cross-attention sublayers too, such as 0,2; with --layers '' these alone (default: all stay)",
    )
    add_out(parser, "a folder (model.onnx in it) or a .onnx file", required=True)
    parser.add_argument(
        "--weights",
        choices=("compact", "share"),
        default="compact",
        help="copy the kept weights into a data file of their own, or share the source's data files and write the "
        "graph alone, in their folder or above (default: compact)",
    )
    add_kv_names(parser)
    add_repair(parser)
    add_calibration(parser, "--text")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prune and say what went."""
    terminal = Terminal.of(args)
    from gatenorm_export.graphs import graph_file
    from gatenorm_export.planning import parse_layers
    from gatenorm_export.pruning import prune_graph

    graph = graph_file(args.graph)
    plan = PrunePlan.load(args.plan) if args.plan else None
    layers = parse_layers(args.layers) if args.layers else ()
    record = prune_graph(
        graph,
        args.out,
        plan=plan,
        plan_sha256=sha256_of(args.plan) if args.plan else None,
        layers=layers,
        repaired=_repaired(args, graph, plan.drop if plan is not None else layers, terminal),
        cross=parse_layers(args.cross) if args.cross else (),
        kv_names=args.kv_names,
        weights=args.weights,
        progress=terminal.progress,
    )
    terminal.result(record.to_object(), pruned_line(record))
    return int(ExitCode.OK)


def _repaired(args: argparse.Namespace, graph: Path, drop: tuple[int, ...], terminal: Terminal) -> Repaired | None:
    from gatenorm_export.repairs import parse_repair

    repair = parse_repair(args.repair)
    if repair.nothing:
        if args.calibration_text is not None or args.no_shipped_text:
            raise UsageError("the calibration text is for --repair; add it, or leave the text out")
        return None
    from gatenorm_export.calibrating import fit_plan

    return fit_plan(graph, drop, repair, corpus_request(args), progress=terminal.progress)


def pruned_line(record: PrunedGraph) -> str:
    """What the pruning took out, in a sentence."""
    before, after = record.before, record.after
    moved = f"; the past length is now read from {record.past_length_from}" if record.past_length_from else ""
    uncached = before.kv_bytes_per_token and not record.kv_cache
    hint = "; no KV cache is left: optimum loads such a graph with use_cache=False" if uncached else ""
    removed = before.n_attention - after.n_attention
    total = after.n_attention + len(record.dropped) + len(record.dropped_cross)
    return (
        f"{removed} attention sublayer{'' if removed == 1 else 's'} removed, {after.n_attention} of {total} left: "
        f"{before.n_nodes - after.n_nodes:,} of {before.n_nodes:,} nodes, "
        f"{before.n_parameters - after.n_parameters:,} of {before.n_parameters:,} parameters and "
        f"{before.kv_bytes_per_token - after.kv_bytes_per_token:,} of {before.kv_bytes_per_token:,} bytes of KV cache "
        f"per token are gone{moved}{hint}{_repair_words(record)}"
    )


def _repair_words(record: PrunedGraph) -> str:
    repair = record.repair
    if repair is None:
        return ""
    return (
        f"; repaired by {repair.kind}, fitted on {repair.n_tokens:,} tokens: {repair.n_parameters:,} parameters and "
        f"{repair.flops_per_token:,} FLOPs per token come back, {repair.flops_share:.0%} of what the "
        "removed projections took"
    )
