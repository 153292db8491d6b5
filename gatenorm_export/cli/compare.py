"""``gatenorm compare BASE PRUNED``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_comparison, add_output, comparison_request
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.cli.tables import comparison_tables, exit_code_of, failures_of
from gatenorm_export.errors import ExitCode
from gatenorm_export.graphs import graph_manifest
from gatenorm_export.kept_work import forget, kept_beside
from gatenorm_export.records import PrunedGraph


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Prove a pruning: faithfulness to the framework, quality, latency and sizes against the base, and engines "
        "against their graphs.\n\n"
        "With -o each stage is kept once it is measured: the same command, given again after an interruption, goes on "
        "behind it, and other limits are held against the same figures.",
        examples=(
            (
                "a gate for a pipeline: fails where quality or speed miss a limit",
                "gatenorm compare base/ pruned/ --max-ppl-ratio 1.1 --min-speedup 1.02 --json",
            ),
            (
                "with the engines of both graphs, and a report",
                "gatenorm compare base/ pruned/ --engines engines/base.engine engines/pruned.engine -o proof/",
            ),
        ),
        codes=(ExitCode.UNFAITHFUL, ExitCode.THRESHOLD),
    )
    parser.add_argument("base", type=Path, help="the unpruned graph: a .onnx file or its folder")
    parser.add_argument("pruned", type=Path, help="the pruned graph: a .onnx file or its folder")
    parser.add_argument("--model", help="the checkpoint both came from (default: the one the manifests name)")
    parser.add_argument(
        "--engines",
        nargs=2,
        type=Path,
        metavar=("BASE", "PRUNED"),
        help="the TensorRT engines of the two graphs: each is run against its graph, output by output, where there is "
        "a GPU; without one their sizes and what their conversion cost are reported",
    )
    add_out(parser, "a folder (compare.json, compare.md and compare.html in it) or a .json file (the others beside it)")
    add_comparison(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, and fail the pipeline when the proof or a limit fails."""
    terminal = Terminal.of(args)
    from gatenorm_export.comparing.compare import compare_graphs
    from gatenorm_export.graph_pair import pair_of_files

    engines = None
    if args.engines is not None:
        from gatenorm_export.comparing.engine_pair import read_engine_pair

        engines = read_engine_pair(*args.engines)
    kept = kept_beside(args.out, "compare")
    base, pruned = pair_of_files(args.base, args.pruned)
    report = compare_graphs(
        base,
        pruned,
        comparison_request(args),
        model_name=args.model,
        engines=engines,
        kept=kept,
        progress=terminal.progress,
    )
    if args.out is not None:
        from gatenorm_export.reporting import ReportMaterial, write_comparison

        record = graph_manifest(pruned, digest_data=False) or graph_manifest(base, digest_data=False)
        material = ReportMaterial(
            None,
            None,
            report,
            engines=engines.records if engines is not None else (),
            engines_not_built="" if engines is not None else "No engines were named; --engines compares them.",
            repair=record.repair if isinstance(record, PrunedGraph) else None,
            model=record.model if record is not None else None,
        )
        path = args.out if args.out.suffix == ".json" else args.out / "compare.json"
        for written in write_comparison(path, material):
            terminal.say(f"wrote {written}")
        forget(kept)
    terminal.result(report.to_object(), *comparison_tables(report))
    return terminal.end(exit_code_of(report), *failures_of(report))
