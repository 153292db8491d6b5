"""``gatenorm export MODEL``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_output, add_tower
from gatenorm_export.cli.score import add_model
from gatenorm_export.errors import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = (
        "Export a model to ONNX (fp32) and check it against the framework model: a decoder with KV cache, a text "
        "encoder, a vision tower, or Whisper's encoder and decoder."
    )
    parser.epilog = "example:\n  gatenorm export smollm2 -o base/"
    add_model(parser)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="a folder (model.onnx, config, tokenizer) or a .onnx file"
    )
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
