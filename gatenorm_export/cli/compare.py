"""``gatenorm compare BASE PRUNED``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_comparison, add_output, comparison_request
from gatenorm_export.cli.tables import comparison_tables, exit_code_of
from gatenorm_export.graphs import graph_file


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = "Prove a pruning: faithfulness to the framework, quality, latency and sizes against the base."
    parser.epilog = "example:\n  gatenorm compare base/ pruned/ --max-ppl-ratio 1.1 --min-speedup 1.02 --json"
    parser.add_argument("base", type=Path, help="the unpruned graph: a .onnx file or its folder")
    parser.add_argument("pruned", type=Path, help="the pruned graph: a .onnx file or its folder")
    parser.add_argument("--model", help="the checkpoint both came from (default: the one the manifests name)")
    parser.add_argument("-o", "--out", type=Path, help="a folder (compare.json in it) or a .json file")
    add_comparison(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, and fail the pipeline when the proof or a limit fails."""
    terminal = Terminal.of(args)
    from gatenorm_export.comparing.compare import compare_graphs

    report = compare_graphs(
        graph_file(args.base),
        graph_file(args.pruned),
        comparison_request(args),
        model_name=args.model,
        progress=terminal.progress,
    )
    if args.out is not None:
        path = args.out if args.out.suffix == ".json" else args.out / "compare.json"
        report.save(path)
        terminal.say(f"wrote {path}")
    terminal.result(report.to_object(), *comparison_tables(report))
    return int(exit_code_of(report))
