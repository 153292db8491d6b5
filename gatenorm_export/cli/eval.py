"""``gatenorm eval MODEL...``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.errors import ExitCode
from gatenorm_export.kept_work import forget, kept_beside
from gatenorm_export.records import Evaluation, ModelResult, TaskMetric

_SHARES = {"acc", "acc_norm", "exact_match"}
"""Metrics between 0 and 1, shown in per cent as papers do."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Evaluate models on zero-shot tasks of EleutherAI's lm-eval, side by side.\n\n"
        "With -o the models' answers are kept as they come: the same command, given again after an interruption, "
        "computes only those that are missing.",
        examples=(
            (
                "the paper's seven tasks",
                "gatenorm eval base/ pruned/ "
                "--tasks boolq,rte,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa -o eval.json",
            ),
            (
                "tasks of your own, the first hundred documents",
                "gatenorm eval base/ pruned/ --include-path tasks/ --tasks mine --limit 100 --json",
            ),
        ),
    )
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="a folder with model.onnx, a .onnx file or an .engine"
    )
    parser.add_argument("--tasks", required=True, metavar="LIST", help="names of tasks, groups or tags, with commas")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder of local task files (.yaml)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N documents of each task, for trying out"
    )
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: the task's own)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="inputs at a time (default: 1)")
    parser.add_argument("--max-length", type=int, metavar="N", help="longest input in tokens (default: config.json's)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="its folder (default: the model's)")
    add_out(parser, "a folder (eval.json in it) or a .json file")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write and show."""
    terminal = Terminal.of(args)
    from gatenorm_export.evaluating import EvaluationRequest, evaluate_models

    request = EvaluationRequest(
        tasks=tuple(name.strip() for name in args.tasks.split(",") if name.strip()),
        include=args.include_path,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        batch=args.batch,
        max_length=args.max_length,
        tokenizer=args.tokenizer,
        command=args.command,
    )
    kept = kept_beside(args.out, "eval")
    evaluation = evaluate_models(args.models, request, kept=kept, progress=terminal.progress)
    if args.out is not None:
        path = args.out if args.out.suffix == ".json" else args.out / "eval.json"
        evaluation.save(path)
        forget(kept)
        terminal.say(f"wrote {path}")
    terminal.result(evaluation.to_object(), *_shown(evaluation))
    return int(ExitCode.OK)


def _shown(evaluation: Evaluation) -> Iterator[RenderableType]:
    base, *others = evaluation.models
    limit = f", the first {evaluation.limit} documents of each" if evaluation.limit is not None else ""
    title = f"lm-eval {evaluation.lm_eval}{limit}; ± standard error, in brackets the change from {base.label}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "n", "shots", "metric"):
        table.add_column(column, justify="left" if column in {"task", "metric"} else "right")
    for model in evaluation.models:
        table.add_column(model.label, justify="right", overflow="fold")
    for index, task in enumerate(base.tasks):
        if task.group is not None:
            continue
        for line, metric in enumerate(task.metrics):
            same = [model.tasks[index].metrics[line] for model in others]
            named = metric.name + ("" if metric.filter == "none" else f" ({metric.filter})")
            counts = ("" if count is None else f"{count:,}" for count in (task.n_samples, task.n_shot))
            heads = (task.task, *counts) if not line else ("", "", "")
            table.add_row(*heads, _named(named, metric), _value(metric), *(_value(other, metric) for other in same))
    if base.n_acc > 1:
        table.add_section()
        table.add_row(f"mean of {base.n_acc}", "", "", "acc %", _mean(base), *(_mean(model) for model in others))
    yield table
    for model in evaluation.models:
        length = f"at most {model.max_length:,} tokens"
        yield f"{model.label}: {model.model}, {model.backend}, {length}, {model.seconds:.0f} s"


def _named(name: str, metric: TaskMetric) -> str:
    return f"{name} %" if metric.name in _SHARES else name


def _value(metric: TaskMetric, base: TaskMetric | None = None) -> str:
    scale, digits = (100, 2) if metric.name in _SHARES else (1, 4)
    shown = f"{scale * metric.value:.{digits}f}"
    if metric.stderr is not None:
        shown += f" ± {scale * metric.stderr:.{digits}f}"
    if base is not None:
        shown += f" ({scale * (metric.value - base.value):+.{digits}f})"
    return shown


def _mean(model: ModelResult) -> str:
    if model.mean_acc is None:
        return ""
    change = "" if model.mean_acc_change is None else f" ({100 * model.mean_acc_change:+.2f})"
    return f"{100 * model.mean_acc:.2f}{change}"
