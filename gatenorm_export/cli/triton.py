"""``gatenorm triton BUNDLE``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.cli.outputs import add_out, replaced
from gatenorm_export.errors import ExitCode
from gatenorm_export.planning import parse_layers
from gatenorm_export.records import TritonRepository

if TYPE_CHECKING:
    from gatenorm_export.deploying.triton import TritonRequest


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Write a model repository for Triton Inference Server from a bundle. A decoder gets a Python model that "
        "generates and streams, and models of Triton's own ONNX Runtime and TensorRT backends that are stepped and "
        "keep their caches in the server; other models are served by ONNX Runtime, an encoder with its tokenizer as an "
        "ensemble. A repository that gatenorm wrote before is replaced as a whole; anything else in its place is "
        "refused.",
        examples=(
            ("all that the bundle has parts for, on the CPU", "gatenorm triton bundle/ -o models/"),
            (
                "the generating model alone, four prompts at a time on a GPU",
                "gatenorm triton bundle/ -o models/ --models generate --kind gpu --max-batch 4",
            ),
            ("serve it", "tritonserver --model-repository=models/"),
        ),
        codes=(ExitCode.TAMPERED,),
    )
    parser.add_argument("bundle", type=Path, help="a folder that `gatenorm bundle` wrote")
    add_out(parser, "the model repository to write, or to replace", required=True, locks=_locks)
    parser.add_argument("--name", help="what the model is called (default: as the bundle)")
    parser.add_argument(
        "--models",
        metavar="LIST",
        default="",
        help="only these of generate, onnxruntime, tensorrt, ensemble (default: all that the bundle has parts for)",
    )
    parser.add_argument(
        "--runtime",
        choices=("onnxruntime", "tensorrt"),
        help="what the generating model runs (default: onnxruntime if the bundle has a graph)",
    )
    _add_placement(parser)
    _add_load(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def _add_placement(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--kind", choices=("cpu", "gpu"), default="cpu", help="engines always run on a GPU (default: cpu)"
    )
    group.add_argument("--gpus", metavar="LIST", default="", help="these GPUs, such as 0,1 (default: every one)")
    group.add_argument(
        "--instances", type=int, default=1, metavar="N", help="instances, each with its own copy of the weights (1)"
    )
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of the generating model (default: ONNX Runtime's)"
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how much it takes on")
    group.add_argument("--max-batch", type=int, default=1, metavar="N", help="requests computed together (default: 1)")
    group.add_argument(
        "--queue-delay",
        type=int,
        default=0,
        metavar="US",
        help="how long Triton waits for a batch to fill, in microseconds (default: 0)",
    )
    group.add_argument(
        "--max-running", type=int, default=8, metavar="N", help="batches, or sequences, that take turns (default: 8)"
    )
    group.add_argument(
        "--max-waiting", type=int, default=64, metavar="N", help="requests that wait, more are refused (default: 64)"
    )
    group.add_argument(
        "--max-context",
        type=int,
        metavar="N",
        help="tokens of prompt and answer, no more than the bundle takes (default: what it takes)",
    )
    group.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        metavar="N",
        help="new tokens if a request does not say, fewer where the context has no room for them (default: 64)",
    )
    group.add_argument(
        "--drain",
        type=int,
        default=20,
        metavar="SECONDS",
        help="how long answers under way may go on when the server shuts down (default: 20; it waits for 30 unless "
        "started with --exit-timeout-secs)",
    )


def _locks(args: argparse.Namespace) -> tuple[Path, ...]:
    """The lock lies beside the output, so within a bundle it would already touch it."""
    from gatenorm_export.bundling.place import require_outside_bundles

    require_outside_bundles(args.out)
    return replaced(args)


def run(args: argparse.Namespace) -> int:
    """Write the repository and say what is in it."""
    terminal = Terminal.of(args)
    from gatenorm_export.deploying.triton import write_repository

    record = write_repository(request_of(args), progress=terminal.progress)
    terminal.result({"folder": str(args.out)} | record.to_object(), *repository_lines(args.out, record))
    return int(ExitCode.OK)


def request_of(args: argparse.Namespace) -> TritonRequest:
    """The request that the options describe.

    Raises:
        UsageError: a value is out of range, or a list cannot be read.
    """
    from gatenorm_export.deploying.triton import Load, Placement, TritonRequest, parse_models

    return TritonRequest(
        bundle=args.bundle,
        out=args.out,
        name=args.name,
        models=parse_models(args.models),
        runtime=args.runtime,
        placement=Placement(args.kind, parse_layers(args.gpus) if args.gpus else (), args.instances, args.threads),
        load=Load(
            max_batch=args.max_batch,
            queue_delay_us=args.queue_delay,
            max_running=args.max_running,
            max_waiting=args.max_waiting,
            max_context=args.max_context,
            default_max_tokens=args.max_tokens,
            drain_seconds=args.drain,
        ),
    )


def repository_lines(folder: Path, record: TritonRepository) -> list[str]:
    """What is in a repository, a line for each model."""
    return [
        f"{folder}: model repository of {record.bundle}",
        *(f"  {model.name} ({model.backend}): {model.does}" for model in record.models),
        *(f"  no {kind} model: {reason}" for kind, reason in record.left_out.items()),
        *(f"  note: {note}" for note in record.notes),
    ]
