"""``gatenorm plan SCORES``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import (
    add_calibration,
    add_drop,
    add_guard,
    add_output,
    add_repair,
    add_tower,
    corpus_request,
    drop_request,
    guard_request,
)
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.errors import ExitCode, RefusedError, UsageError
from gatenorm_export.graphs import graph_file
from gatenorm_export.records import LayerScores, PrunePlan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Choose the attention sublayers to remove, from a file of scores; with --guard by measuring what each removal "
        "costs on text. An interrupted search goes on where it was.",
        examples=(
            (
                "the four lowest scores, never the first two layers",
                "gatenorm plan scores/scores.json --drop 4 --protect 0,1 -o plan.json",
            ),
            (
                "eight, by a greedy search that counts in the repair to come",
                "gatenorm plan scores/scores.json --drop 8 --guard --graph base/ --repair linear -o plan.json",
            ),
        ),
    )
    parser.add_argument("scores", type=Path, help="scores.json, as `gatenorm score -o` or --json writes it")
    add_out(parser, "a folder (plan.json in it) or a .json file")
    add_drop(parser, required=True)
    add_tower(parser)
    add_guard(parser)
    parser.add_argument("--graph", type=Path, help="with --guard: the unpruned graph, a .onnx file or its folder")
    add_repair(parser)
    add_calibration(parser, "--text")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and write the plan."""
    terminal = Terminal.of(args)
    from gatenorm_export.planning import make_plan

    scores, sha256 = LayerScores.load(args.scores), sha256_of(args.scores)
    path = None
    if args.out is not None:
        path = args.out if args.out.suffix == ".json" else args.out / "plan.json"
    guard = guard_request(args)
    if guard is None:
        _check_unguarded(args)
        try:
            plan = make_plan(scores, drop_request(args), scores_sha256=sha256)
        except RefusedError as error:
            raise RefusedError(f"{args.scores}: {error}") from error
    else:
        from gatenorm_export.calibrating import CACHE_NAME, guarded_plan

        if args.graph is None:
            raise UsageError("--guard measures on a graph; name the unpruned one with --graph")
        plan = guarded_plan(
            scores,
            graph_file(args.graph),
            drop_request(args),
            guard,
            corpus_request(args),
            scores_sha256=sha256,
            cache=path.with_name(CACHE_NAME) if path is not None else None,
            progress=terminal.progress,
        )
    if path is not None:
        plan.save(path)
        terminal.say(f"wrote {path}")
    terminal.result(plan.to_object(), plan_line(plan), *guard_lines(plan))
    return int(ExitCode.OK)


def _check_unguarded(args: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    if args.graph is not None or args.calibration_text is not None or args.no_shipped_text:
        raise UsageError("--graph and the calibration text belong to --guard; add it, or leave them out")
    if args.repair != "none":
        raise UsageError("--repair is given to `gatenorm prune`; `plan` needs it with --guard only, to measure with it")


def plan_line(plan: PrunePlan) -> str:
    """The plan in a sentence."""
    if not plan.drop:
        return f"drop none of {plan.n_layers} attention sublayers of {plan.model_name}"
    listed = ", ".join(map(str, plan.drop))
    return f"drop {len(plan.drop)} of {plan.n_layers} attention sublayers of {plan.model_name}: {listed}"


def guard_lines(plan: PrunePlan) -> list[RenderableType]:
    """What was measured, step by step, and what was spared and why."""
    if plan.guard is None or not plan.guard.steps:
        return []
    table = Table(title=f"Guard on {plan.guard.n_tokens:,} tokens of {plan.guard.text}", title_justify="left")
    for column in ("step", "layer", "perplexity", "ratio", "this step", "KL, nats"):
        table.add_column(column, justify="right")
    for number, step in enumerate(plan.guard.steps, 1):
        table.add_row(
            str(number),
            str(step.layer),
            f"{step.ppl:.2f}",
            f"{step.ppl_ratio:.3f}",
            f"{step.cost:.3f}",
            f"{step.kl_nats:.4f}",
        )
    return [table, *plan.guard.sentences]
