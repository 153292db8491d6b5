"""``gatenorm score MODEL``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from gatenorm_export.artifacts import sha256_of_text, write_text
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_drop, add_output, drop_request
from gatenorm_export.errors import ExitCode
from gatenorm_export.records import LayerScores

_BAR_WIDTH = 40


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = "Score every attention sublayer of a checkpoint: Gate-Norm, from the q/k weights alone."
    parser.epilog = "example:\n  gatenorm score smollm2 --drop 4 -o scores/"
    add_model(parser)
    parser.add_argument("-o", "--out", type=Path, help="a folder (scores.json and scores.svg in it) or a .json file")
    add_drop(parser, required=False)
    add_output(parser)
    parser.set_defaults(run=run)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The checkpoint argument."""
    parser.add_argument("model", help="a Hugging Face folder, a .gguf file, a hub id, or smollm2, the demo model")


def run(args: argparse.Namespace) -> int:
    """Score, show the table, and write the files that were asked for."""
    terminal = Terminal.of(args)
    from gatenorm_export.planning import make_plan
    from gatenorm_export.reporting import scores_svg
    from gatenorm_export.scoring import score_model
    from gatenorm_export.sources import resolve_model

    spec = resolve_model(args.model, progress=terminal.progress)
    scores = score_model(spec, progress=terminal.progress)
    request = drop_request(args)
    drop: tuple[int, ...] = ()
    if request.asked:
        drop = make_plan(scores, request, scores_sha256=sha256_of_text(scores.to_json())).drop
    if args.out is not None:
        path = args.out if args.out.suffix == ".json" else args.out / "scores.json"
        scores.save(path)
        write_text(path.with_suffix(".svg"), scores_svg(scores, drop))
        terminal.say(f"wrote {path} and {path.with_suffix('.svg')}")
    terminal.result(scores.to_object(), score_table(scores, drop), scores.trend.sentence)
    return int(ExitCode.OK)


def score_table(scores: LayerScores, drop: tuple[int, ...]) -> Table:
    """Layer, score, bar and drop mark, one row a layer."""
    table = Table(title=f"Gate-Norm scores of {scores.model.name}", title_justify="left")
    table.add_column("layer", justify="right")
    table.add_column("score", justify="right")
    table.add_column("", min_width=_BAR_WIDTH)
    table.add_column("")
    highest = max(entry.score for entry in scores.layers) or 1.0
    for entry in scores.layers:
        dropped = entry.layer in drop
        bar = "█" * max(1, round(_BAR_WIDTH * entry.score / highest))
        style = "bold red" if dropped else None
        table.add_row(str(entry.layer), f"{entry.score:.1f}", bar, "drop" if dropped else "", style=style)
    return table
