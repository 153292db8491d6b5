"""``gatenorm export MODEL``."""

from __future__ import annotations

import argparse

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output, add_tower
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.cli.score import add_model
from gatenorm_export.errors import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Export a model to ONNX (fp32) and check it against the framework model: a decoder with KV cache, a text "
        "encoder, a vision tower, or Whisper's encoder and decoder. One that computes something else is not kept.",
        examples=(
            ("a graph with its tokenizer and configs", "gatenorm export smollm2 -o base/"),
            ("one tower of CLIP, the graph alone", "gatenorm export clip/ --tower vision -o vision.onnx"),
        ),
    )
    add_model(parser)
    add_out(parser, "a folder (model.onnx, config, tokenizer) or a .onnx file", required=True)
    add_tower(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export and validate."""
    terminal = Terminal.of(args)
    from gatenorm_export.exporting import export_model
    from gatenorm_export.sources import resolve_model

    spec = resolve_model(args.model, progress=terminal.progress)
    record = export_model(spec, args.out, tower=args.tower or "", progress=terminal.progress)
    graph = args.out if args.out.suffix == ".onnx" else args.out / record.graph
    terminal.result(
        record.to_object(),
        f"exported {spec.name} to {graph} (opset {record.opset}, {record.precision}); largest "
        f"error against the framework {record.max_abs_error:.1e}, tolerance {record.tolerance:.1e}",
    )
    return int(ExitCode.OK)
