"""What models scored on lm-eval's tasks."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record


class TaskMetric(Part):
    """One metric of one task, as lm-eval gives it: a share of 1 for acc, acc_norm and exact_match.

    ``stderr`` is None where lm-eval knows no standard error.
    """

    name: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None


class TaskResult(Part):
    """One task, or a group with a metric of its own. ``group`` is the group whose metric counts this one in.

    ``n_samples`` documents of ``n_total`` were used; both are None of a group.
    """

    task: str
    group: str | None
    version: str | None
    n_shot: int | None
    n_samples: int | None
    n_total: int | None
    metrics: tuple[TaskMetric, ...]


class ModelResult(Part):
    """All tasks of one model.

    ``sha256`` is over the model's files. ``mean_acc`` is the mean of acc over the ``n_acc`` results that have it and
    count in no group's, None where there is none; ``mean_acc_change`` is its difference to the first model's.
    """

    model: str
    label: str
    sha256: str
    dropped: tuple[int, ...] | None
    backend: str
    max_length: int
    tasks: tuple[TaskResult, ...]
    n_acc: int
    mean_acc: float | None
    mean_acc_change: float | None
    seconds: float


class Evaluation(Record):
    """Several models on the same tasks; the first is what the others are held against."""

    kind: Literal["evaluation"] = "evaluation"
    lm_eval: str
    tasks: tuple[str, ...]
    include_path: str | None
    limit: int | None
    num_fewshot: int | None
    batch: int
    models: tuple[ModelResult, ...]
    device: str
    command: str
