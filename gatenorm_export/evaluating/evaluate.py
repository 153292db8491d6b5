"""Run lm-eval's tasks on one model after the other, and put the results side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from gatenorm_export.errors import UsageError, needs
from gatenorm_export.evaluating.kept_answers import KeptAnswers
from gatenorm_export.evaluating.models import EvaluatedModel, find_model, tokenizer_digest
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.processor import device_name
from gatenorm_export.progress import Progress, Quiet, Task
from gatenorm_export.records import Evaluation, ModelResult, TaskMetric, TaskResult
from gatenorm_export.silence import silenced


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate. ``limit`` documents of each task (None: all), ``batch`` inputs at a time.

    ``num_fewshot`` None is what each task defines; ``max_length`` None is what each model's config.json says, in
    tokens; ``tokenizer`` None is each model's own.
    """

    tasks: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch: int = 1
    max_length: int | None = None
    tokenizer: Path | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError("no task is named; --tasks takes names with commas between them, such as boolq,rte")
        least = (("limit", self.limit, 1), ("num-fewshot", self.num_fewshot, 0), ("batch", self.batch, 1))
        for name, value, smallest in (*least, ("max-length", self.max_length, 2)):
            if value is not None and value < smallest:
                raise UsageError(f"--{name} {value} is too small; it starts at {smallest}")


def evaluate_models(
    models: Sequence[Path], request: EvaluationRequest, *, kept: Path | None = None, progress: Progress | None = None
) -> Evaluation:
    """Evaluate models on the same tasks, one after the other; all are checked before the first is run.

    Seeds, truncation, batching and metrics are those of lm-eval's command line with its HFLM; see :class:`DecoderLM`.
    Nothing of a model or a data set is run as code.

    ``kept`` is a file for the models' answers so far, from which the same call goes on where it was interrupted;
    whoever calls forgets it once the result is written.

    Raises:
        MissingPartError: lm-eval, onnxruntime or an engine's TensorRT is not installed.
        InputError: a model, a tokenizer, a task or a data set is missing or damaged.
        RefusedError: a task needs more than greedy decoding, or a model cannot be run as asked.
        OutputError: ``kept`` cannot be written.
    """
    progress = progress or Quiet()
    with needs("eval", "evaluating"), silenced():
        import transformers  # noqa: F401

        import gatenorm_export.comparing.runners  # noqa: F401
        from gatenorm_export.evaluating.tasks import load_tasks
    with progress.task("check the models", total=len(models)) as bar:
        found = []
        for path in models:
            found.append(find_model(path, tokenizer=request.tokenizer, max_length=request.max_length))
            bar.advance()
    work = KeptWork(kept, _decides(found, request))
    with _lm_eval_kept_quiet(progress) as aloud:
        with aloud.task("load the tasks"), contextlib.redirect_stderr(io.StringIO()):
            loaded = load_tasks(request.tasks, include=request.include, num_fewshot=request.num_fewshot)
        results: list[ModelResult] = []
        for index, (model, label) in enumerate(zip(found, _labels(found), strict=True)):
            first = results[0] if results else None
            # A model that is named twice is run twice.
            answers = KeptAnswers(work, index, model.sha256, progress=aloud)
            results.append(_evaluate(model, label, loaded, request, first, answers, aloud))
    return Evaluation(
        lm_eval=_lm_eval_version(),
        tasks=request.tasks,
        include_path=str(request.include) if request.include is not None else None,
        limit=request.limit,
        num_fewshot=request.num_fewshot,
        batch=request.batch,
        models=tuple(results),
        device=device_name(),
        command=request.command,
    )


def _lm_eval_version() -> str:
    return importlib.metadata.version("lm-eval")


def _decides(models: Sequence[EvaluatedModel], request: EvaluationRequest) -> list[Any]:
    """What decides the answers, beside the inputs of each batch; files of local tasks are in those inputs."""
    asked = [request.tasks, request.limit, request.num_fewshot, request.batch]
    found = [[model.sha256, model.max_length, tokenizer_digest(model.tokenizer)] for model in models]
    return [*asked, found, _lm_eval_version(), device_name()]


def _labels(models: Sequence[EvaluatedModel]) -> list[str]:
    """Short names where they tell the models apart, else whole paths."""
    short = [model.label for model in models]
    return short if len(set(short)) == len(short) else [str(model.path) for model in models]


def _evaluate(
    model: EvaluatedModel,
    label: str,
    loaded: dict[str, Any],
    request: EvaluationRequest,
    first: ModelResult | None,
    kept: KeptAnswers,
    progress: Progress,
) -> ModelResult:
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate

    from gatenorm_export.evaluating.lm import DecoderLM
    from gatenorm_export.evaluating.tasks import blamed_on_the_task

    start = time.perf_counter()
    with progress.task(f"load {model.path}"):
        decoder = model.open()
    try:
        lm = DecoderLM(
            decoder,
            model.tokenizer,
            max_length=model.max_length,
            batch_size=request.batch,
            eos_token_ids=model.eos_token_ids,
            kept=kept,
            progress=progress,
        )
        # As lm-eval's command line seeds them: few-shot examples are drawn, and every model must see the same.
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        with blamed_on_the_task():
            answer = evaluate(lm, loaded, limit=request.limit, log_samples=False)
        backend = decoder.backend
    finally:
        # Before the next one is opened: two large models need not fit together.
        decoder.close()
    tasks = task_results(answer)
    accuracies = [
        metric.value for task in tasks if task.group is None for metric in task.metrics if metric.name == "acc"
    ]
    mean = sum(accuracies) / len(accuracies) if accuracies else None
    base = first.mean_acc if first is not None else None
    return ModelResult(
        model=str(model.path),
        label=label,
        sha256=model.sha256,
        dropped=model.dropped,
        backend=backend,
        max_length=model.max_length,
        tasks=tasks,
        n_acc=len(accuracies),
        mean_acc=mean,
        mean_acc_change=mean - base if mean is not None and base is not None else None,
        seconds=time.perf_counter() - start + kept.seconds,
    )


def task_results(answer: Mapping[str, Any]) -> tuple[TaskResult, ...]:
    """What ``lm_eval.evaluate`` returned, one result for each task and for each group that has metrics of its own."""
    groups = {name for name, metrics in answer["results"].items() if name not in answer["n-samples"]}
    parents = {
        child: name for name in groups & set(answer.get("groups", {})) for child in answer["group_subtasks"][name]
    }
    found = []
    for name, values in answer["results"].items():
        if name in groups and name not in answer.get("groups", {}):
            continue
        samples = answer["n-samples"].get(name, {})
        better = answer["higher_is_better"].get(name, {})
        version = answer["versions"].get(name)
        found.append(
            TaskResult(
                task=name,
                group=parents.get(name),
                version=str(version) if version is not None else None,
                n_shot=answer["n-shot"].get(name),
                n_samples=samples.get("effective"),
                n_total=samples.get("original"),
                metrics=tuple(_metrics(values, better)),
            )
        )
    return tuple(found)


def _metrics(values: Mapping[str, Any], better: Mapping[str, Any]) -> Iterator[TaskMetric]:
    for key, value in values.items():
        # "acc,none" is a metric and its filter; alias and sample counts have no comma.
        name, comma, chosen = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        stderr = values.get(f"{name}_stderr,{chosen}")
        known = isinstance(stderr, (int, float)) and math.isfinite(stderr)
        yield TaskMetric(
            name=name,
            filter=chosen,
            value=float(value),
            stderr=float(stderr) if known and stderr is not None else None,
            higher_is_better=better.get(name),
        )


class _Aloud:
    """A progress display that is seen although stderr is silenced around it."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        self._progress, self._stream = progress, stream

    @contextlib.contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Task]:
        """A bar on the real stderr."""
        with contextlib.redirect_stderr(self._stream), self._progress.task(label, total) as bar:
            yield bar

    def say(self, line: str) -> None:
        """A line on the real stderr."""
        with contextlib.redirect_stderr(self._stream):
            self._progress.say(line)


class _Errors(logging.Handler):
    """Errors that lm-eval logs, said aloud; everything below is not for the user."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.ERROR)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(f"lm-eval: {' '.join(record.getMessage().split())}")


@contextlib.contextmanager
def _lm_eval_kept_quiet(progress: Progress) -> Iterator[Progress]:
    """Silence lm-eval and datasets, their bars included, while the block runs; our own progress and errors are seen."""
    aloud = _Aloud(progress, sys.stderr)
    handler = _Errors(aloud)
    logger = logging.getLogger("lm_eval")
    logger.addHandler(handler)
    try:
        with silenced():
            yield aloud
    finally:
        logger.removeHandler(handler)
