"""The first half of a recovery: train, judge, and write the merged model as a checkpoint."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from gatenorm_export.artifacts import staged_folder
from gatenorm_export.comparing.text import MINIMUM_TOKENS, Text
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.framework import load_framework_model
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.model_configs import configs_from
from gatenorm_export.progress import Progress
from gatenorm_export.records import ModelSpec, RecoveryQuality
from gatenorm_export.recovering.outcome import Trained
from gatenorm_export.recovering.request import RecoverRequest, split_windows
from gatenorm_export.repairs import LayerRepair

_QUALITY = TypeAdapter(RecoveryQuality)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a model is to learn: to do without the attention of ``layers``.

    ``text`` is trained on; its end and ``eval_texts`` are judged on, beside the model that ``repairs`` make, if any.
    """

    spec: ModelSpec
    layers: tuple[int, ...]
    text: Text
    eval_texts: tuple[Text, ...]
    repairs: Mapping[int, LayerRepair] | None
    request: RecoverRequest


def learn(lesson: Lesson, checkpoint: Path, *, kept: KeptWork, state: Path, progress: Progress) -> Trained:
    """Load the model, train, judge, and write ``checkpoint``.

    Training is saved in the file ``state``, and goes on from there; what was judged is ``kept``.

    Raises:
        InputError: the text is too short, or the model has no tokenizer.
        RefusedError: the model takes no such windows, or training diverged.
        OutputError: the checkpoint or the state cannot be written.
    """
    from gatenorm_export.recovering.judging import judge
    from gatenorm_export.recovering.so_far import TrainingFile
    from gatenorm_export.recovering.student import ALPHA_PER_RANK, Student
    from gatenorm_export.recovering.training import train

    start = time.perf_counter()
    spec, layers, text, request = lesson.spec, lesson.layers, lesson.text, lesson.request
    with progress.task("load the framework model"):
        model, tokenizer = load_framework_model(spec)
    _check_window(model, request.window, spec)
    windows = split_windows(_tokens(tokenizer, text, spec), request.window, text.name)
    held_out = Text(f"the end of {text.name}, held out", text.content)
    judged = [(held_out, windows.held_out, True)]
    limit = request.max_text_tokens
    judged += [(other, _judged_tokens(tokenizer, other, spec, limit), False) for other in lesson.eval_texts]
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    student = Student(model, spec, layers, rank=request.rank, seed=request.seed)
    n_trainable = sum(parameter.numel() for parameter in student.parameters)
    progress.say(
        f"{n_trainable:,} LoRA parameters on {len(student.targets)} linear layers; {len(windows.train):,} windows of "
        f"{request.window} tokens to train on, {len(windows.held_out):,} tokens held out"
    )
    training = train(student, windows, request, file=TrainingFile(state, kept.key), progress=progress)
    qualities = []
    for index, (other, ids, is_held_out) in enumerate(judged):
        # Of a run of minutes that lost its state and was trained again, another state is judged.
        name = f"quality on text {index} of step {training.best_step} of {training.steps}"

        def of_text(other: Text = other, ids: np.ndarray = ids, held: bool = is_held_out) -> RecoveryQuality:
            return judge(student, ids, other, held_out=held, repairs=lesson.repairs, progress=progress)

        qualities.append(kept.once(name, _QUALITY, of_text))
    targets = student.targets
    with progress.task("write the checkpoint"), staged_folder(checkpoint) as staging:
        _save(student.merge(), tokenizer, staging, spec, layers)
    return Trained(
        training,
        len(windows.train),
        len(windows.held_out),
        tuple(qualities),
        targets,
        ALPHA_PER_RANK * request.rank,
        n_trainable,
        n_parameters,
        time.perf_counter() - start + training.earlier_seconds + kept.seconds,
    )


def _check_window(model: Any, window: int, spec: ModelSpec) -> None:
    longest = configs_from(model.config).max_positions
    if longest is not None and window > longest:
        raise RefusedError(f"--window {window}: {spec.name} takes {longest} tokens at most; give fewer")


def _tokens(tokenizer: Any, text: Text, spec: ModelSpec) -> np.ndarray:
    if tokenizer is None:
        raise InputError(f"{spec.path}: has no tokenizer to read a text with; copy the model's tokenizer there")
    return np.array(tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"], np.int64)


def _judged_tokens(tokenizer: Any, text: Text, spec: ModelSpec, limit: int) -> np.ndarray:
    tokens = _tokens(tokenizer, text, spec)[:limit]
    if len(tokens) < MINIMUM_TOKENS:
        raise InputError(f"{text.name}: {len(tokens)} tokens are too few to judge by; give at least {MINIMUM_TOKENS}")
    return tokens


def _save(model: Any, tokenizer: Any, folder: Path, spec: ModelSpec, layers: tuple[int, ...]) -> None:
    from safetensors import SafetensorError

    # Whoever loads the checkpoint with all its attention gets a model that was never trained to be one.
    model.config.gatenorm = {
        "trained_without_attention_of_layers": list(layers),
        "from_model": spec.name,
        "from_digest": spec.digest,
    }
    try:
        model.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)
