"""Options of verbs that build engines, and what they mean."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.cli.values import whole
from gatenorm_export.errors import UsageError

if TYPE_CHECKING:
    from gatenorm_export.building import BuildOptions, ShapeRequest

PRECISIONS = ("as-is", "fp32", "fp16", "bf16", "fp8", "int4")


def add_profiles(parser: argparse.ArgumentParser) -> None:
    """The bounds of the engine's optimisation profiles."""
    group = parser.add_argument_group("engine profiles")
    group.add_argument("--batch", type=whole(1), default=1, metavar="N", help="largest batch (default: 1)")
    group.add_argument(
        "--prompt",
        type=whole(1),
        metavar="N",
        help="longest prompt in tokens (default: 512, or one token less than the context)",
    )
    group.add_argument(
        "--context",
        type=whole(2),
        metavar="N",
        help="longest context in tokens, prompt and answer (default: 2048, or what the model takes by its config.json; "
        "more than a table of positions has is refused)",
    )
    group.add_argument(
        "--decode-step",
        type=whole(1),
        default=2,
        metavar="N",
        help="longest step of the decode profile in tokens; 1 fixes it, and the engine then holds the matrices "
        "twice (default: 2)",
    )


def shape_request(args: argparse.Namespace) -> ShapeRequest:
    """The profile bounds that :func:`add_profiles`'s options describe.

    Raises:
        UsageError: prompt or step do not fit the context.
    """
    from gatenorm_export.building import ShapeRequest

    return ShapeRequest(args.batch, args.prompt, args.context, args.decode_step)


def add_build(parser: argparse.ArgumentParser) -> None:
    """Precision, profile file, targets, cache and memory of a build."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="as-is",
        help="what the engine computes in; the graph is converted, norms and softmax stay in fp32; fp8 and int4 are "
        "for graphs that are quantised already (default: as the graph is)",
    )
    group.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help='bounds of single inputs in place of those made from the graph, as JSON: {"decode": {"input_ids": '
        '{"min": [1, 1], "opt": [1, 1], "max": [8, 1]}}}; further profiles may be added',
    )
    group.add_argument(
        "--compute-capability",
        metavar="LIST",
        default="",
        help="TensorRT-RTX: build for these GPUs only, such as 8.6,8.9 (default: 8.0, 8.6, 8.9, 12.0 and newer)",
    )
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="neither take the engine from the build cache nor keep it there (GATENORM_CACHE says where it is)",
    )
    group.add_argument(
        "--no-conversion-check",
        action="store_true",
        help="do not measure on the CPU what lowering and conversion change",
    )
    group.add_argument(
        "--despite-memory", action="store_true", help="build although memory most likely does not suffice"
    )


def build_options(args: argparse.Namespace) -> BuildOptions:
    """The options of a build that :func:`add_build` describes.

    Raises:
        InputError: the profile file cannot be read.
        UsageError: the list of compute capabilities cannot be read.
    """
    from gatenorm_export.building import BuildOptions, default_cache, load_overrides

    return BuildOptions(
        precision=None if args.precision == "as-is" else args.precision,
        overrides=load_overrides(args.profile) if args.profile is not None else {},
        capabilities=_capabilities(args.compute_capability),
        cache=None if args.no_cache else default_cache(),
        despite_memory=args.despite_memory,
        measured=not args.no_conversion_check,
    )


def _capabilities(text: str) -> tuple[str, ...]:
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    for entry in entries:
        if not re.fullmatch(r"\d+\.\d", entry):
            raise UsageError(f"--compute-capability {text}: {entry} is none; they look like 8.6")
    return tuple(dict.fromkeys(entries))
