"""Groups of options that several verbs share, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.cli.values import number, whole
from gatenorm_export.errors import UsageError
from gatenorm_export.planning import DropRequest, parse_layers

if TYPE_CHECKING:
    from gatenorm_export.calibrating import CorpusRequest, GuardRequest
    from gatenorm_export.comparing.request import ComparisonRequest


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--quiet``, which every verb has."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
    group.add_argument("--quiet", "-q", action="store_true", help="no progress and no talk on stderr, errors apart")


def add_drop(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Which sublayers to remove: ``--drop``, ``--ratio`` or ``--layers``, and ``--protect``."""
    group = parser.add_argument_group("which attention sublayers go")
    choice = group.add_mutually_exclusive_group(required=required)
    choice.add_argument("--drop", type=int, metavar="N", help="the N lowest scores; ties go to the deeper layer")
    choice.add_argument("--ratio", type=float, metavar="R", help="this share of all layers, rounded down (0 to 1)")
    choice.add_argument("--layers", metavar="LIST", help="exactly these layers, such as 24-27,29")
    group.add_argument("--protect", metavar="LIST", default="", help="never these layers, such as 0,1")


def add_tower(parser: argparse.ArgumentParser) -> None:
    """``--tower``."""
    parser.add_argument(
        "--tower",
        metavar="NAME",
        help="which stack of layers, of a model that has several: text or vision (CLIP), encoder, decoder or cross "
        "(Whisper)",
    )


def drop_request(args: argparse.Namespace) -> DropRequest:
    """The request that :func:`add_drop`'s options describe.

    Raises:
        UsageError: a list of layers cannot be read.
    """
    return DropRequest(
        drop=args.drop,
        ratio=args.ratio,
        layers=parse_layers(args.layers) if args.layers is not None else None,
        protect=parse_layers(args.protect) if args.protect else (),
        tower=args.tower,
    )


def add_calibration(parser: argparse.ArgumentParser, *names: str) -> None:
    """The text that guard and repair use; ``names`` are further names of the option."""
    group = parser.add_argument_group("calibration text")
    group.add_argument(
        "--calibration-text",
        *names,
        dest="calibration_text",
        type=Path,
        metavar="FILE",
        help="text to fit and measure on, a few KB of anything, beside the text that gatenorm ships",
    )
    group.add_argument("--no-shipped-text", action="store_true", help="use that text alone")


def corpus_request(args: argparse.Namespace) -> CorpusRequest:
    """The texts that :func:`add_calibration`'s options name.

    Raises:
        UsageError: no text is left.
    """
    from gatenorm_export.calibrating import CorpusRequest

    if args.no_shipped_text and args.calibration_text is None:
        raise UsageError("--no-shipped-text leaves no text; name one with --calibration-text")
    return CorpusRequest(args.calibration_text, shipped=not args.no_shipped_text)


def add_repair(parser: argparse.ArgumentParser) -> None:
    """``--repair``."""
    parser.add_argument(
        "--repair",
        default="none",
        metavar="KIND",
        help="what takes the place of removed attention, fitted on text in closed form: none, bias (one Add), mlp (the "
        "layer's MLP gets another last matrix, at no cost), linear (one d x d matrix) or linear:RANK; bias+mlp or "
        "linear+mlp fits both (default: none)",
    )


def add_guard(parser: argparse.ArgumentParser) -> None:
    """``--guard`` and how it searches."""
    group = parser.add_argument_group("guard")
    group.add_argument("--guard", action="store_true", help="choose by what removals cost on text, not by scores alone")
    group.add_argument(
        "--search",
        choices=("greedy", "order"),
        default="greedy",
        help="at each step the layer that costs least, or the order of the scores, sparing what costs more than the "
        "budget (default: greedy)",
    )
    group.add_argument(
        "--budget",
        type=number(1.0),
        metavar="X",
        help="no removal may multiply perplexity by more than X (default: 1.05 for order, none for greedy)",
    )
    group.add_argument(
        "--candidates", type=whole(1), metavar="K", help="only the K lowest scores may go (default: all)"
    )
    group.add_argument(
        "--despite-failure", action="store_true", help="go on although the plan shows the signs of a ruined model"
    )


def guard_request(args: argparse.Namespace) -> GuardRequest | None:
    """The guard that :func:`add_guard`'s options describe; None without ``--guard``.

    Raises:
        UsageError: an option that means nothing without ``--guard``, or a value out of range.
    """
    if not args.guard:
        if args.budget is not None or args.candidates is not None or args.despite_failure or args.search != "greedy":
            raise UsageError("--search, --budget, --candidates and --despite-failure belong to --guard; add it")
        return None
    from gatenorm_export.calibrating import GuardRequest
    from gatenorm_export.repairs import parse_repair

    return GuardRequest(
        search=args.search,
        budget=args.budget,
        candidates=args.candidates,
        repair=parse_repair(args.repair),
        force=args.despite_failure,
    )


def add_kv_names(parser: argparse.ArgumentParser) -> None:
    """``--kv-names``."""
    parser.add_argument(
        "--kv-names",
        choices=("dense", "keep"),
        default="dense",
        help="renumber the remaining cache tensors 0..n-1, or keep their names (default: dense)",
    )


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """What a comparison measures, and the limits that make it fail."""
    group = parser.add_argument_group("comparison")
    group.add_argument("--text", type=Path, metavar="FILE", help="text to judge quality on (default: a shipped one)")
    group.add_argument(
        "--max-text-tokens", type=whole(1), default=2048, metavar="N", help="tokens of the text to use (default: 2048)"
    )
    group.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help=".npy or .png to judge a vision tower on (default: synthetic ones)",
    )
    group.add_argument(
        "--audio", type=Path, metavar="FILE", help="a 16-bit .wav to judge Whisper on (default: synthetic sounds)"
    )
    group.add_argument("--no-latency", action="store_true", help="do not measure latency")
    limits = parser.add_argument_group("limits (missed: exit code 11)")
    limits.add_argument(
        "--max-ppl-ratio", type=number(), metavar="X", help="perplexity, pruned over unpruned, at most X"
    )
    limits.add_argument("--max-kl", type=number(), metavar="X", help="KL(base || pruned) in nats per token, at most X")
    limits.add_argument(
        "--min-cosine", type=number(), metavar="X", help="of an encoder's or vision tower's vectors, mean, at least X"
    )
    limits.add_argument(
        "--min-agreement",
        type=number(),
        metavar="X",
        help="share of equal first choices (tokens, classes), of labels in common or of a transcript's right tokens, "
        "or the rank correlation of scores, at least X",
    )
    limits.add_argument(
        "--min-speedup",
        type=number(),
        metavar="X",
        help="decode speed, or the forward pass of what is no decoder, pruned over unpruned, at least X",
    )


def comparison_request(args: argparse.Namespace) -> ComparisonRequest:
    """The comparison that :func:`add_comparison`'s options describe."""
    from gatenorm_export.comparing import Limits
    from gatenorm_export.comparing.request import ComparisonRequest

    return ComparisonRequest(
        text=args.text,
        max_text_tokens=args.max_text_tokens,
        latency=not args.no_latency,
        limits=Limits(
            max_ppl_ratio=args.max_ppl_ratio,
            min_speedup=args.min_speedup,
            max_kl=args.max_kl,
            min_cosine=args.min_cosine,
            min_agreement=args.min_agreement,
        ),
        command=args.command,
        images=args.images,
        audio=args.audio,
    )


def add_flavour(parser: argparse.ArgumentParser, *, choices: Sequence[str], default: str | None = None) -> None:
    """``--flavour``: which TensorRT builds the engines."""
    parser.add_argument(
        "--flavour",
        choices=choices,
        default=default,
        help=f"which TensorRT (default: {default or 'the installed one'})",
    )
