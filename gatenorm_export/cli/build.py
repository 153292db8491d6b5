"""``gatenorm build MODEL.onnx``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.engine_options import add_build, build_options
from gatenorm_export.cli.engine_view import built_line, preparation_lines
from gatenorm_export.cli.options import add_flavour, add_output, add_profiles, shape_request
from gatenorm_export.errors import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = (
        "Build a TensorRT engine with a prefill and a decode profile; TensorRT-RTX needs no GPU for it. Operators that "
        "TensorRT does not take are lowered first. The same build is taken from a cache."
    )
    parser.epilog = "example:\n  gatenorm build pruned/model.onnx -o engines/pruned.engine --precision fp16"
    parser.add_argument("graph", type=Path, help="a .onnx file, or a folder that holds model.onnx")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder (model.engine in it) or a file name")
    add_flavour(parser, choices=("tensorrt", "tensorrt-rtx"))
    add_profiles(parser)
    add_build(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build and say what came out."""
    terminal = Terminal.of(args)
    from gatenorm_export.building import build_engine, find_flavour
    from gatenorm_export.graphs import graph_file

    graph = graph_file(args.graph)
    engine = args.out / f"{graph.stem}.engine" if args.out.is_dir() or not args.out.suffix else args.out
    artifact = build_engine(
        graph,
        engine,
        flavour=find_flavour(args.flavour),
        shapes=shape_request(args),
        options=build_options(args),
        progress=terminal.progress,
    )
    terminal.result(artifact.to_object(), built_line(engine, artifact), *preparation_lines(artifact))
    return int(ExitCode.OK)
