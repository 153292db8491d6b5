"""``gatenorm recover MODEL``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_kv_names, add_output
from gatenorm_export.cli.outputs import add_out, folders
from gatenorm_export.cli.score import add_model
from gatenorm_export.errors import ExitCode
from gatenorm_export.planning import parse_layers
from gatenorm_export.records import PrunePlan, RecoveryReport
from gatenorm_export.recovering.request import DEFAULT_MINUTES, RecoverRequest


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Fine-tune a pruned model with LoRA on a text, merge, export and prune it again, and say what that gave "
        "back.\n\n"
        "Training is saved every half minute: the same command, given again after an interruption, goes on from there, "
        "or behind the stage that was done, and ends in the same weights.",
        examples=(
            (
                "five minutes on the CPU",
                "gatenorm recover smollm2 --plan plan.json --text prose.txt --minutes 5 -o recovered/",
            ),
            (
                "beside a closed-form repair of the same layers",
                "gatenorm recover smollm2 --plan plan.json --text prose.txt --against repaired/ -o recovered/",
            ),
        ),
        codes=(ExitCode.UNFAITHFUL,),
    )
    add_model(parser)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--plan", type=Path, help="plan.json, as `gatenorm plan` writes it")
    choice.add_argument("--layers", metavar="LIST", help="without the attention of exactly these layers, such as 3,7-9")
    add_out(
        parser, "a folder; nothing in it is overwritten, an unfinished recovery goes on", required=True, locks=folders()
    )
    add_kv_names(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--text", type=Path, metavar="FILE", required=True, help="text to train on; its end is held out")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="this many steps: a run that can be repeated")
    length.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        default=DEFAULT_MINUTES,
        help="about so long, training alone; the number of steps is settled after the first few (default: 5)",
    )
    group.add_argument(
        "--loss",
        choices=("distill", "text"),
        default=RecoverRequest.loss,
        help="KL(unpruned || recovered), or next-token loss on the text, which also learns the text (default: distill)",
    )
    for option, kind, what in (
        ("rank", int, "LoRA's rank"),
        ("learning-rate", float, "the highest learning rate"),
        ("window", int, "tokens in a window"),
        ("batch", int, "windows in a step"),
        ("seed", int, "seed of LoRA's first weights and of the windows' order"),
    ):
        default = getattr(RecoverRequest, option.replace("-", "_"))
        group.add_argument(
            f"--{option}", type=kind, default=default, metavar="X", help=f"{what} (default: {default:g})"
        )
    judged = parser.add_argument_group("judging")
    judged.add_argument(
        "--eval-text",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="another text to judge on; may be given again (default: a shipped one)",
    )
    judged.add_argument(
        "--against",
        type=Path,
        metavar="GRAPH",
        help="a graph of the same layers made with `prune --repair`: its repair is judged on the same texts",
    )
    judged.add_argument(
        "--max-text-tokens", type=int, default=2048, metavar="N", help="tokens of each such text to use (default: 2048)"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Recover, and show what it gave back."""
    terminal = Terminal.of(args)
    from gatenorm_export.recovering import recover_model
    from gatenorm_export.sources import resolve_model

    request = RecoverRequest(
        text=args.text,
        eval_texts=tuple(args.eval_text),
        max_text_tokens=args.max_text_tokens,
        steps=args.steps,
        minutes=args.minutes,
        rank=args.rank,
        learning_rate=args.learning_rate,
        window=args.window,
        batch=args.batch,
        loss=args.loss,
        seed=args.seed,
        kv_names=args.kv_names,
        against=args.against,
        command=args.command,
    )
    plan = PrunePlan.load(args.plan) if args.plan else None
    layers = parse_layers(args.layers) if args.layers is not None else ()
    report = recover_model(
        resolve_model(args.model, progress=terminal.progress),
        args.out,
        request,
        layers=layers,
        plan=plan,
        plan_sha256=sha256_of(args.plan) if args.plan else None,
        progress=terminal.progress,
    )
    terminal.result(report.to_object(), *recovery_tables(report), f"graph: {args.out / report.graph.name}")
    code = ExitCode.UNFAITHFUL if report.faithfulness.passed is False else ExitCode.OK
    return terminal.end(code, report.faithfulness.reason)


def recovery_tables(report: RecoveryReport) -> list[RenderableType]:
    """What was trained, what it gave back on each text, faithfulness, and the verdict."""
    rival = [f"--repair {report.against}"] if report.against is not None else []
    perplexity = _table("Perplexity", "tokens", "unpruned", "pruned", "recovered", "given back", *rival)
    states = ("pruned", "recovered", *rival)
    distance = _table("KL to the unpruned in nats, top-1 agreement", *states, *states)
    for row in report.qualities:
        share = "-" if row.recovered_share is None else f"{row.recovered_share:.0%}"
        values = (row.base_ppl, row.pruned_ppl, row.recovered_ppl)
        repaired = [f"{row.repaired_ppl:.2f}"] if row.repaired_ppl is not None else []
        perplexity.add_row(row.text, f"{row.n_tokens:,}", *(f"{value:.2f}" for value in values), share, *repaired)
        kls = (row.pruned_kl_nats, row.recovered_kl_nats, row.repaired_kl_nats)
        agreements = (row.pruned_top1_agreement, row.recovered_top1_agreement, row.repaired_top1_agreement)
        distance.add_row(
            row.text,
            *(f"{value:.4f}" for value in kls if value is not None),
            *(f"{value:.1%}" for value in agreements if value is not None),
        )
    trained = (
        f"trained {report.n_trainable:,} of {report.n_parameters + report.n_trainable:,} parameters for "
        f"{report.steps} steps, {report.n_tokens_seen:,} tokens, {report.epochs:.1f} times through "
        f"{report.text}, in {report.train_seconds:.0f} s ({report.total_seconds:.0f} s in all); "
        f"kept: {f'step {report.best_step}' if report.best_step else 'the pruned model as it was'}"
    )
    faithful = f"faithfulness: {report.faithfulness.reason}"
    return [trained, perplexity, distance, faithful, Text(report.verdict, style="bold")]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("text")
    for column in columns:
        table.add_column(column, justify="right")
    return table
