"""``gatenorm build MODEL.onnx``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_flavour, add_output, add_profiles, shape_request
from gatenorm_export.errors import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = (
        "Build a TensorRT engine with a prefill and a decode profile; TensorRT-RTX needs no GPU for it."
    )
    parser.epilog = "example:\n  gatenorm build pruned/model.onnx -o engines/pruned.engine"
    parser.add_argument("graph", type=Path, help="a .onnx file, or a folder that holds model.onnx")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder (model.engine in it) or a file name")
    add_flavour(parser, choices=("tensorrt", "tensorrt-rtx"))
    add_profiles(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build and say what came out."""
    terminal = Terminal.of(args)
    from gatenorm_export.building import build_engine, find_flavour
    from gatenorm_export.graphs import graph_file, graph_manifest

    graph = graph_file(args.graph)
    graph_manifest(graph)
    engine = args.out / f"{graph.stem}.engine" if args.out.is_dir() or not args.out.suffix else args.out
    artifact = build_engine(
        graph,
        engine,
        flavour=find_flavour(args.flavour),
        shapes=shape_request(args),
        progress=terminal.progress,
    )
    terminal.result(
        artifact.to_object(),
        f"built {engine} with {artifact.flavour} {artifact.flavour_version} in {artifact.build_seconds:.0f} s: "
        f"{artifact.bytes / 1e6:,.0f} MB, {artifact.n_network_layers:,} layers, {artifact.n_inputs} inputs, "
        f"{artifact.n_outputs} outputs; built on {artifact.built_on}",
    )
    return int(ExitCode.OK)
