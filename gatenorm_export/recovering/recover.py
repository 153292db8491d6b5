"""The recovery of one pruned model: train, judge, merge, export, prune, check."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gatenorm_export.artifacts import sha256_of, staged_folder
from gatenorm_export.comparing import check_faithfulness, load_text
from gatenorm_export.comparing.deciding import graph_digest
from gatenorm_export.comparing.text import Text
from gatenorm_export.errors import GateNormError, InputError, RefusedError, needs
from gatenorm_export.exporting import export_model
from gatenorm_export.graphs import GRAPH_NAME, graph_file, graph_manifest
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.kinds import require_decoder
from gatenorm_export.processor import device_name
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.provenance import require_model
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import FileDigest, ModelSpec, PrunedGraph, PrunePlan, RecoveryReport
from gatenorm_export.recovering.claiming import claimed
from gatenorm_export.recovering.learning import Lesson, learn
from gatenorm_export.recovering.outcome import Trained
from gatenorm_export.recovering.request import RecoverRequest
from gatenorm_export.recovering.verdict import verdict
from gatenorm_export.repairs import LayerRepair, repairs_of
from gatenorm_export.sources import resolve_model

CHECKPOINT, PRUNED, PLAN, REPORT = "checkpoint", "pruned", "plan.json", "recovery.json"
_KEPT, _STATE, _BASE = ".recover-so-far", ".recover-training.safetensors", ".recover-base"
"""What an unfinished recovery has done, its training so far, and the graph with all its attention."""


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

    Nothing is overwritten. The same call goes on where it was interrupted: training from where it was last saved,
    judging text by text, then behind the checkpoint and the export. What serves that lies hidden in ``output`` and goes
    in the end.

    Raises:
        MissingPartError: torch, transformers, peft, optimum or onnxruntime is not installed.
        InputError: the text is too short, or the model has no tokenizer.
        RefusedError: the plan is of another model, a layer does not exist or none is named, the model takes no such
            windows, or training diverged.
        OutputError: the output cannot be written, or holds a recovery or a pruned graph already.
    """
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
    lesson = Lesson(spec, layers, text, tuple(eval_texts), repairs, request)
    with (
        claimed(output, folders=(CHECKPOINT, PRUNED), files=(PLAN, REPORT), kept=(CHECKPOINT, _BASE, _STATE, _KEPT)),
        staged_folder(output) as staging,
    ):
        work = KeptWork(output / _KEPT, _decides(spec, layers, plan_sha256, text, eval_texts, request))
        trained, recovered = _recovered(
            output,
            work,
            lambda: learn(lesson, output / CHECKPOINT, kept=work, state=output / _STATE, progress=progress),
            progress,
        )
        # As if it were all one call.
        start = time.perf_counter() - trained.seconds
        if plan is not None:
            plan = plan.model_copy(
                update={
                    "model_name": recovered.name,
                    "model_digest": recovered.query_key_digest,
                    "policy": f"{plan.policy} of {spec.name}, before recovery",
                }
            )
            plan.save(staging / PLAN)
        start -= _export(recovered, output / _BASE, work, progress)
        prune_graph(
            output / _BASE / GRAPH_NAME,
            output / PRUNED,
            plan=plan,
            plan_sha256=sha256_of(staging / PLAN) if plan is not None else None,
            layers=layers,
            kv_names=request.kv_names,
            progress=progress,
        )
        _name_parent(output, spec)
        graph = output / PRUNED / GRAPH_NAME
        training = trained.training
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
            n_train_windows=trained.n_train_windows,
            n_held_out_tokens=trained.n_held_out_tokens,
            steps=training.steps,
            best_step=training.best_step,
            n_tokens_seen=training.steps * request.batch * request.window,
            epochs=training.steps * request.batch / trained.n_train_windows,
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


def _decides(
    spec: ModelSpec,
    layers: tuple[int, ...],
    plan_sha256: str | None,
    text: Text,
    eval_texts: list[Text],
    request: RecoverRequest,
) -> list[Any]:
    """Everything that decides what comes out, in JSON types; training is the same on one number of threads alone."""
    import torch

    asked = {name: str(value) for name, value in dataclasses.asdict(request).items() if name != "command"}
    texts = [[entry.name, entry.sha256] for entry in (text, *eval_texts)]
    against = graph_digest(graph_file(request.against)) if request.against is not None else None
    machine = [device_name(), torch.get_num_threads()]
    return [spec.name, spec.digest, layers, plan_sha256, texts, against, asked, *machine]


def _recovered(
    output: Path, work: KeptWork, learn: Callable[[], Trained], progress: Progress
) -> tuple[Trained, ModelSpec]:
    """The checkpoint: of an interrupted call of before, or trained, judged and written now."""
    checkpoint, kind = output / CHECKPOINT, TypeAdapter(Trained)
    trained = work.find("trained", kind)
    if trained is not None:
        with contextlib.suppress(GateNormError):
            recovered = resolve_model(str(checkpoint), progress=progress)
            if recovered.digest == work.get("checkpoint"):
                progress.say(f"{checkpoint}: trained and judged before; going on")
                return trained, recovered
    for name in (CHECKPOINT, _BASE):
        shutil.rmtree(output / name, ignore_errors=True)
    trained = learn()
    # The exporter loads the checkpoint that was saved; two copies of a large model need not fit into memory.
    gc.collect()
    recovered = resolve_model(str(checkpoint), progress=progress)
    work.put("checkpoint", recovered.digest)
    return work.once("trained", kind, lambda: trained), recovered


def _export(recovered: ModelSpec, base: Path, work: KeptWork, progress: Progress) -> float:
    """Export the checkpoint with all its attention, or find that done; how many seconds of before that took."""
    graph = base / GRAPH_NAME
    kept = work.get("export")
    if isinstance(kept, list):
        with contextlib.suppress(GateNormError):
            if kept[:2] == [recovered.digest, graph_digest(graph)]:
                progress.say("exported before; going on")
                return float(kept[2])
    shutil.rmtree(base, ignore_errors=True)
    began = time.perf_counter()
    export_model(recovered, base, progress=progress)
    work.put("export", [recovered.digest, graph_digest(graph), time.perf_counter() - began])
    return 0.0


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


def _name_parent(output: Path, spec: ModelSpec) -> None:
    """Say what the graph came from: its parent was never more than a file in a temporary folder."""
    manifest = output / PRUNED / "manifest.json"
    record = PrunedGraph.load(manifest)
    gone = f"not kept: the export of {(output / CHECKPOINT).resolve()} with all its attention"
    record.model_copy(update={"parent_path": gone, "recovered_from": spec.digest}).save(manifest)
