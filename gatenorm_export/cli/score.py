"""``gatenorm score MODEL``."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from gatenorm_export.artifacts import write_text
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output, add_tower
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.errors import ExitCode, UsageError
from gatenorm_export.planning import DropRequest, parse_layers, rank_layers
from gatenorm_export.records import LayerScores

if TYPE_CHECKING:
    from gatenorm_export.architectures import NamePatterns

_BAR_WIDTH = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Score every attention sublayer of a checkpoint: Gate-Norm, from the weights of queries and keys alone. "
        "Neither data nor torch is needed.\n\n"
        "Of a URL only headers and the bytes of query and key weights are fetched, and kept: an interrupted scoring "
        "goes on where it stopped.",
        examples=(
            (
                "a demo model, its four lowest scores marked, and a plot",
                "gatenorm score smollm2 --drop 4 -o scores/",
            ),
            (
                "two cuts of a model that stays where it lies",
                "gatenorm score https://host/models/llama-70b/ --drop 8,16 -o scores/",
            ),
            ("the weights inside an ONNX graph, as one JSON object", "gatenorm score model.onnx --json --quiet"),
        ),
    )
    add_model(parser, whole=False)
    add_out(parser, "a folder (scores.json and scores.svg in it) or a .json file")
    _add_cuts(parser)
    add_tower(parser)
    _add_formula(parser)
    add_patterns(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def add_model(parser: argparse.ArgumentParser, *, whole: bool = True) -> None:
    """The checkpoint argument; ``whole`` where the framework loads it."""
    there = "a model folder, a .gguf file"
    if not whole:
        urls = "https://, s3://, gs://, hf://"
        there = f"a model folder, a .safetensors, .bin, .gguf or .onnx file, a URL of safetensors or GGUF ({urls})"
    parser.add_argument("model", help=f"{there}, a hub id, or a demo model: smollm2 or minilm")


def add_patterns(parser: argparse.ArgumentParser) -> None:
    """``--q-pattern`` and ``--k-pattern``."""
    group = parser.add_argument_group("a family that gatenorm does not know")
    for letter, word in (("q", "query"), ("k", "key")):
        group.add_argument(
            f"--{letter}-pattern",
            metavar="NAME",
            help=f"name of the {word} weights, {{layer}} for the number, such as blocks.{{layer}}.att.{letter}",
        )


def name_patterns(args: argparse.Namespace) -> NamePatterns | None:
    """The names that :func:`add_patterns`'s options give.

    Raises:
        UsageError: only one of the two is given.
    """
    if args.q_pattern is None and args.k_pattern is None:
        return None
    if args.q_pattern is None or args.k_pattern is None:
        raise UsageError("--q-pattern and --k-pattern belong together; give both")
    from gatenorm_export.architectures import NamePatterns

    return NamePatterns(args.q_pattern, args.k_pattern)


def _add_cuts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which lowest scores must be certain (without: every score is exact)")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--drop", metavar="N[,N]", help="the N lowest scores of each tower; several numbers may be given"
    )
    choice.add_argument("--ratio", type=float, metavar="R", help="this share of all layers, rounded down (0 to 1)")
    choice.add_argument("--layers", metavar="LIST", help="mark exactly these layers, such as 24-27,29")
    group.add_argument("--protect", metavar="LIST", default="", help="never these layers, such as 0,1")
    group.add_argument("--exact", action="store_true", help="no sketches: every score exact, also away from the cut")


def _add_formula(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to score")
    group.add_argument(
        "--variant",
        choices=("all-heads", "per-head"),
        default="all-heads",
        help="the paper's norm over all heads together, or the root of the heads' squared norms (default: all-heads)",
    )
    group.add_argument(
        "--fold-norms", action="store_true", help="also with the norm weights folded in, and how far the ranking moves"
    )
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Score, show the table, and write the files that were asked for."""
    terminal = Terminal.of(args)
    from gatenorm_export.scoring import ScoreRequest, score_model
    from gatenorm_export.sources import resolve_model

    asked = _requests(args)
    spec = resolve_model(args.model, whole=False, patterns=name_patterns(args), progress=terminal.progress)
    request = ScoreRequest(
        towers=(args.tower,) if args.tower else None,
        cuts=tuple(one.drop for one in asked if one.drop is not None),
        ratio=args.ratio,
        protect=asked[0].protect if asked else (),
        exact=args.exact or not asked,
        variant=args.variant,
        fold_norms=args.fold_norms,
        device=args.device,
    )
    scores = score_model(spec, request, progress=terminal.progress)
    if args.out is not None:
        _write(scores, asked, args.out, terminal)
    terminal.result(scores.to_object(), *_shown(scores, asked))
    return int(ExitCode.OK)


def _requests(args: argparse.Namespace) -> tuple[DropRequest, ...]:
    """What is to be marked: one request a cut, the smallest first."""
    protect = parse_layers(args.protect) if args.protect else ()
    if args.drop is not None:
        try:
            cuts = sorted({int(part) for part in args.drop.split(",")})
        except ValueError:
            raise UsageError(f"--drop {args.drop}: give a number, or several such as 8,16") from None
        return tuple(DropRequest(drop=cut, protect=protect) for cut in cuts)
    if args.ratio is not None:
        return (DropRequest(ratio=args.ratio, protect=protect),)
    if args.layers is not None:
        return (DropRequest(layers=parse_layers(args.layers), protect=protect),)
    if protect:
        raise UsageError("--protect spares layers of a cut; give --drop or --ratio with it")
    return ()


def _write(scores: LayerScores, asked: tuple[DropRequest, ...], out: Path, terminal: Terminal) -> None:
    from gatenorm_export.reporting import scores_svg

    path = out if out.suffix == ".json" else out / "scores.json"
    plots = {
        path.with_name(f"{path.stem}-{tower}.svg" if tower else f"{path.stem}.svg"): tower for tower in scores.towers
    }
    pictures = {
        plot: scores_svg(
            scores.narrowed(tower), _marks(scores, asked, tower), protect=asked[0].protect if asked else ()
        )
        for plot, tower in plots.items()
    }
    scores.save(path)
    for plot, picture in pictures.items():
        write_text(plot, picture)
    terminal.say(f"wrote {path} and {', '.join(map(str, pictures))}")


def _marks(scores: LayerScores, asked: tuple[DropRequest, ...], tower: str) -> dict[int, str]:
    """The layers that go, each with the word for it: with several cuts, the smallest that takes it."""
    marks: dict[int, str] = {}
    for request in asked:
        ranking = rank_layers(scores, dataclasses.replace(request, tower=tower))
        for layer in ranking.layers[: ranking.count]:
            marks.setdefault(layer, "drop" if len(asked) == 1 else f"drop {ranking.count}")
    return marks


def _shown(scores: LayerScores, asked: tuple[DropRequest, ...]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for tower in scores.towers:
        shown += [score_table(scores.narrowed(tower), _marks(scores, asked, tower)), scores.trends[tower].sentence]
    shown += [cut.sentence for cut in scores.cuts]
    if scores.convention.guessed is not None:
        shown.append(scores.convention.guessed)
    if scores.folded is not None:
        shown += [shift.sentence for shift in scores.folded.shifts]
    return shown


def score_table(scores: LayerScores, marks: dict[int, str]) -> Table:
    """Layer, score, bar and mark of one tower, a row a layer; sketched scores with half the width of their interval."""
    of = f", {scores.towers[0]}" if scores.towers[0] else ""
    table = Table(title=f"Gate-Norm scores of {scores.model.name}{of}", title_justify="left")
    sketched = any(entry.low is not None for entry in scores.layers)
    for column in ("layer", "score", *(("±",) if sketched else ())):
        table.add_column(column, justify="right")
    table.add_column("", min_width=_BAR_WIDTH)
    table.add_column("")
    highest = max(entry.score for entry in scores.layers) or 1.0
    # Four digits of the highest score, and never less than one behind the point.
    decimals = max(1, 3 - math.floor(math.log10(highest)))
    for entry in scores.layers:
        mark = marks.get(entry.layer, "")
        bar = "█" * max(1, round(_BAR_WIDTH * entry.score / highest))
        width = "" if entry.low is None or entry.high is None else f"{(entry.high - entry.low) / 2:.2g}"
        cells = (str(entry.layer), f"{entry.score:.{decimals}f}", *((width,) if sketched else ()), bar, mark)
        table.add_row(*cells, style="bold red" if mark else None)
    return table
