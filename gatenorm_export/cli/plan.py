"""``gatenorm plan SCORES``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.options import add_drop, add_output, drop_request
from gatenorm_export.errors import ExitCode
from gatenorm_export.records import LayerScores, PrunePlan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = "Choose the attention sublayers to remove, from a file of scores."
    parser.epilog = "example:\n  gatenorm plan scores/scores.json --drop 4 --protect 0,1 -o plan.json"
    parser.add_argument("scores", type=Path, help="scores.json, as `gatenorm score -o` or --json writes it")
    parser.add_argument("-o", "--out", type=Path, help="a folder (plan.json in it) or a .json file")
    add_drop(parser, required=True)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and write the plan."""
    terminal = Terminal.of(args)
    from gatenorm_export.planning import make_plan

    plan = make_plan(LayerScores.load(args.scores), drop_request(args), scores_sha256=sha256_of(args.scores))
    if args.out is not None:
        path = args.out if args.out.suffix == ".json" else args.out / "plan.json"
        plan.save(path)
        terminal.say(f"wrote {path}")
    terminal.result(plan.to_object(), plan_line(plan))
    return int(ExitCode.OK)


def plan_line(plan: PrunePlan) -> str:
    """The plan in a sentence."""
    if not plan.drop:
        return f"drop none of {plan.n_layers} attention sublayers of {plan.model_name}"
    listed = ", ".join(map(str, plan.drop))
    return f"drop {len(plan.drop)} of {plan.n_layers} attention sublayers of {plan.model_name}: {listed}"
