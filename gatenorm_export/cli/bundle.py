"""``gatenorm bundle RUN``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.cli.outputs import add_out, replaced
from gatenorm_export.errors import ExitCode
from gatenorm_export.records import BundleManifest


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Put everything that a server needs into one folder: graph, engines, tokenizer, configs, manifest and report. "
        "optimum's ORTModelForCausalLM and onnxruntime-genai load it as it is. A bundle that is there is replaced as a "
        "whole.\n\n"
        "Keep the seal that is printed: by it `gatenorm verify --seal` tells whether anybody touched the bundle.",
        examples=(
            ("a finished run, with its engine", "gatenorm bundle out/ -o bundle/"),
            ("any graph, with an engine of it", "gatenorm bundle pruned/ --engine pruned.engine -o bundle/"),
            (
                "a graph alone, with tokenizer and configs from the model's folder",
                "gatenorm bundle pruned.onnx --beside model/ -o bundle/",
            ),
        ),
    )
    parser.add_argument("source", type=Path, help="a run folder, a folder that holds a graph, or a .onnx file")
    add_out(parser, "the folder to write, or the bundle to replace", required=True, locks=replaced)
    parser.add_argument(
        "--engine",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an engine of this graph, with its record beside it; may be given several times",
    )
    parser.add_argument("--no-engines", action="store_true", help="leave out the run's own engine")
    parser.add_argument("--no-onnx", action="store_true", help="leave out the graph: engines alone")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave out the tokenizer; clients send numbers")
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="FOLDER",
        help="takes tokenizer, configs and licence from here where the graph's own folder has none",
    )
    parser.add_argument("--name", help="what the bundle calls itself (default: the model's name)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the bundle and say what is in it."""
    terminal = Terminal.of(args)
    from gatenorm_export.bundling import BundleRequest, make_bundle

    request = BundleRequest(
        source=args.source,
        out=args.out,
        engines=tuple(args.engine),
        with_engines=not args.no_engines,
        with_onnx=not args.no_onnx,
        tokenizer=not args.no_tokenizer,
        beside=args.beside,
        name=args.name,
    )
    manifest = make_bundle(request, progress=terminal.progress)
    terminal.result({"folder": str(args.out)} | manifest.to_object(), *bundle_lines(args.out, manifest))
    return int(ExitCode.OK)


def bundle_lines(folder: Path, manifest: BundleManifest) -> list[str]:
    """What is in a bundle, in a few lines."""
    total = sum(file.bytes for file in manifest.files)
    left = sum(new is not None for new in manifest.layer_map.values())
    engines = f", {len(manifest.engines)} engine{'' if len(manifest.engines) == 1 else 's'}" if manifest.engines else ""
    licence = f"{manifest.licence} ({manifest.licence_source})" if manifest.licence else "not known"
    return [
        f"bundled {manifest.name} in {folder}: {len(manifest.files) + 1} files, {total / 1e6:,.1f} MB{engines}; "
        f"{manifest.task}, attention in {left} of {manifest.n_layers} layers",
        f"licence: {licence}",
        *(f"{client.name} does not run it: {client.reason}" for client in manifest.clients if client.reason),
        *(f"{client.name} loads it, but {client.note}" for client in manifest.clients if client.note),
        *([f"not stepped token by token: {manifest.no_decoding}"] if manifest.no_decoding else []),
        *([f"reproducible: {manifest.reproducible_sha256}"] if manifest.reproducible_sha256 else []),
        f"seal: {manifest.seal}",
    ]
