"""The recovery of one pruned model: train, judge, merge, export, prune, check."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gatenorm_export.artifacts import sha256_of, staged_folder
from gatenorm_export.comparing import check_faithfulness, load_text
from gatenorm_export.comparing.latency import device_name
from gatenorm_export.comparing.text import MINIMUM_TOKENS, Text
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.exporting import export_model
from gatenorm_export.framework import load_framework_model
from gatenorm_export.graphs import GRAPH_NAME, graph_file, graph_manifest
from gatenorm_export.kinds import require_decoder
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.provenance import require_model
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import FileDigest, ModelSpec, PrunedGraph, PrunePlan, RecoveryQuality, RecoveryReport
from gatenorm_export.recovering.claiming import claimed
from gatenorm_export.recovering.request import RecoverRequest, Windows, split_windows
from gatenorm_export.recovering.verdict import verdict
from gatenorm_export.repairs import LayerRepair, repairs_of
from gatenorm_export.sources import resolve_model

if TYPE_CHECKING:
    from gatenorm_export.recovering.training import Training

CHECKPOINT, PRUNED, PLAN, REPORT = "checkpoint", "pruned", "plan.json", "recovery.json"


def recover_model(
    spec: ModelSpec,
    output: Path,
    request: RecoverRequest,
    *,
    layers: tuple[int, ...] = (),
    plan: PrunePlan | None = None,
    plan_sha256: str | None = None,
    progress: Progress | None = None,
) -> RecoveryReport:
    """Fine-tune ``spec`` without the attention of ``layers``, or of a plan's layers, and write the result's graph.

    Into the folder ``output`` go ``checkpoint/``, the merged model with the weights of the removed attention as they
    were; ``pruned/``, its ONNX graph; ``plan.json``, where a plan was given, the same layers bound to the new
    checkpoint; and ``recovery.json``, last. An unpruned graph is not left: with its attention the recovered model
    computes nothing that anybody wants.

    Nothing is overwritten, and nothing is written before training ends.

    Raises:
        MissingPartError: torch, transformers, peft, optimum or onnxruntime is not installed.
        InputError: the text is too short, the model has no tokenizer, or a setting does not fit.
        RefusedError: the plan is of another model, a layer does not exist or none is named, or training diverged.
        OutputError: the output cannot be written, or holds a recovery or a pruned graph already.
    """
    start = time.perf_counter()
    progress = progress or Quiet()
    layers = _layers(spec, plan, layers)
    against, repairs = _against(request.against, spec, layers)
    require_decoder(spec, "recover")
    text, eval_texts = _texts(request)
    with needs("recover", "recovering"):
        import onnxruntime  # noqa: F401
        import peft  # noqa: F401
        import polygraphy  # noqa: F401
        import torch
    with claimed(output, folders=(CHECKPOINT, PRUNED), files=(PLAN, REPORT)), staged_folder(output) as staging:
        trained = _train(spec, layers, text, eval_texts, repairs, request, output / CHECKPOINT, progress)
        # The exporter loads the checkpoint that was saved; two copies of a large model need not fit into memory.
        gc.collect()
        recovered = resolve_model(str(output / CHECKPOINT), progress=progress)
        if plan is not None:
            plan = plan.model_copy(
                update={
                    "model_name": recovered.name,
                    "model_digest": recovered.query_key_digest,
                    "policy": f"{plan.policy} of {spec.name}, before recovery",
                }
            )
            plan.save(staging / PLAN)
        export_model(recovered, staging / "base", progress=progress)
        prune_graph(
            staging / "base" / GRAPH_NAME,
            output / PRUNED,
            plan=plan,
            plan_sha256=sha256_of(staging / PLAN) if plan is not None else None,
            layers=layers,
            kv_names=request.kv_names,
            progress=progress,
        )
        shutil.rmtree(staging / "base")
        _name_parent(output, spec)
        graph = output / PRUNED / GRAPH_NAME
        training, windows = trained.training, trained.windows
        report = RecoveryReport(
            model=spec,
            recovered_model=recovered,
            n_layers=spec.n_layers,
            dropped=layers,
            plan_sha256=plan_sha256,
            text=text.name,
            text_sha256=text.sha256,
            loss=request.loss,
            rank=request.rank,
            alpha=trained.alpha,
            targets=trained.targets,
            n_trainable=trained.n_trainable,
            n_parameters=trained.n_parameters,
            learning_rate=request.learning_rate,
            window_tokens=request.window,
            batch_windows=request.batch,
            seed=request.seed,
            threads=torch.get_num_threads(),
            device=device_name(),
            n_train_windows=len(windows.train),
            n_held_out_tokens=len(windows.held_out),
            steps=training.steps,
            best_step=training.best_step,
            n_tokens_seen=training.steps * request.batch * request.window,
            epochs=training.steps * request.batch / len(windows.train),
            train_seconds=training.seconds,
            points=training.points,
            qualities=trained.qualities,
            graph=FileDigest.of(graph, folder=output),
            faithfulness=check_faithfulness(graph, recovered, layers, progress=progress),
            against=against,
            verdict=verdict(trained.qualities, training.best_step, training.steps),
            total_seconds=time.perf_counter() - start,
            command=request.command,
        )
        report.save(staging / REPORT)
    return report


@dataclasses.dataclass(frozen=True)
class _Trained:
    """What is left of training once the checkpoint is written and the model is gone."""

    training: Training
    windows: Windows
    qualities: tuple[RecoveryQuality, ...]
    targets: tuple[str, ...]
    alpha: int
    n_trainable: int
    n_parameters: int


def _train(
    spec: ModelSpec,
    layers: tuple[int, ...],
    text: Text,
    eval_texts: list[Text],
    repairs: Mapping[int, LayerRepair] | None,
    request: RecoverRequest,
    checkpoint: Path,
    progress: Progress,
) -> _Trained:
    """Load, train, judge, and save the merged model."""
    from gatenorm_export.recovering.judging import judge
    from gatenorm_export.recovering.student import ALPHA_PER_RANK, Student
    from gatenorm_export.recovering.training import train

    with progress.task("load the framework model"):
        model, tokenizer = load_framework_model(spec)
    _check_window(model, request.window, spec)
    windows = split_windows(_tokens(tokenizer, text, spec), request.window, text.name)
    held_out = Text(f"the end of {text.name}, held out", text.content)
    judged = [(held_out, windows.held_out, True)]
    judged += [(other, _judged_tokens(tokenizer, other, spec, request.max_text_tokens), False) for other in eval_texts]
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    student = Student(model, spec, layers, rank=request.rank, seed=request.seed)
    n_trainable = sum(parameter.numel() for parameter in student.parameters)
    progress.say(
        f"{n_trainable:,} LoRA parameters on {len(student.targets)} linear layers; {len(windows.train):,} windows of "
        f"{request.window} tokens to train on, {len(windows.held_out):,} tokens held out"
    )
    training = train(student, windows, request, progress=progress)
    qualities = tuple(
        judge(student, ids, other, held_out=is_held_out, repairs=repairs, progress=progress)
        for other, ids, is_held_out in judged
    )
    targets = student.targets
    with progress.task("write the checkpoint"), staged_folder(checkpoint) as staging:
        _save(student.merge(), tokenizer, staging, spec, layers)
    return _Trained(training, windows, qualities, targets, ALPHA_PER_RANK * request.rank, n_trainable, n_parameters)


def _texts(request: RecoverRequest) -> tuple[Text, list[Text]]:
    """The text to train on and those to judge on."""
    text = load_text(request.text)
    others = [load_text(path) for path in request.eval_texts] or [load_text(None)]
    for other in others:
        if other.sha256 == text.sha256:
            raise InputError(f"{other.name}: is the text to train on too; judge on another one (--eval-text)")
    return text, others


def _layers(spec: ModelSpec, plan: PrunePlan | None, layers: tuple[int, ...]) -> tuple[int, ...]:
    if plan is not None:
        require_model(plan, spec, where=spec.path)
        layers = plan.drop
    if not layers:
        raise RefusedError("no attention sublayer is to be removed, so there is nothing to recover; name one or more")
    beyond = [layer for layer in layers if not 0 <= layer < spec.n_layers]
    if beyond:
        raise RefusedError(f"layer {beyond[0]} does not exist: {spec.name} has {spec.n_layers} attention layers")
    return tuple(sorted(layers))


def _against(
    graph: Path | None, spec: ModelSpec, layers: tuple[int, ...]
) -> tuple[str | None, Mapping[int, LayerRepair] | None]:
    """Kind and arrays of the repair to judge against, once it is known to be of the same layers of the same model."""
    if graph is None:
        return None, None
    graph = graph_file(graph)
    record = graph_manifest(graph)
    if not isinstance(record, PrunedGraph) or record.repair is None:
        raise InputError(f"{graph}: is no repaired graph; prune with --repair and name that graph with --against")
    if record.model is None or record.model.digest != spec.digest:
        raise RefusedError(f"{graph}: was not made from {spec.name} ({spec.digest[:12]}); repair that model")
    if set(record.dropped) != set(layers):
        there, asked = (", ".join(map(str, sorted(chosen))) for chosen in (record.dropped, layers))
        raise RefusedError(
            f"{graph}: lacks attention in layers {there}, the recovery in {asked}; use one plan for both"
        )
    return record.repair.kind, repairs_of(graph, record.repair)


def _check_window(model: Any, window: int, spec: ModelSpec) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and window > longest:
        raise InputError(f"--window {window}: {spec.name} takes {longest} tokens at most; give fewer")


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


def _name_parent(output: Path, spec: ModelSpec) -> None:
    """Say what the graph came from: its parent was never more than a file in a temporary folder."""
    manifest = output / PRUNED / "manifest.json"
    record = PrunedGraph.load(manifest)
    gone = f"not kept: the export of {(output / CHECKPOINT).resolve()} with all its attention"
    record.model_copy(update={"parent_path": gone, "recovered_from": spec.digest}).save(manifest)
