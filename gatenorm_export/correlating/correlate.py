"""Gate-Norm beside two measures of what attention does on a text, and whether they agree."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from gatenorm_export.architectures import adapter_for
from gatenorm_export.comparing.text import load_text
from gatenorm_export.correlating.agreement import agreement, cut_of, warning_of
from gatenorm_export.correlating.measuring import measure_layers
from gatenorm_export.correlating.windows import cut_windows
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.framework import load_framework_model
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.kinds import kind_of
from gatenorm_export.processor import device_name
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import LayerScores, ModelSpec
from gatenorm_export.records.correlation import CorrelationReport, LayerMeasures
from gatenorm_export.scoring.ranks import lowest
from gatenorm_export.urls import is_remote

if TYPE_CHECKING:
    from gatenorm_export.records import TowerSpec

_NO_TEXT = {"vision": "images", "speech": "audio"}


@dataclasses.dataclass(frozen=True)
class CorrelationRequest:
    """What to measure on; ``text`` None is the shipped text. ``cut`` is how many lowest layers are compared,
    a quarter of all where it is None; ``tower`` is needed for a checkpoint of several."""

    text: Path | None
    max_text_tokens: int = 2048
    cut: int | None = None
    tower: str | None = None
    command: str = ""


def correlate_model(
    spec: ModelSpec, request: CorrelationRequest, *, kept: Path | None = None, progress: Progress | None = None
) -> CorrelationReport:
    """Score a checkpoint, run a text through it, and compare how the two rank its attention sublayers.

    ``kept`` is a file for scores and sums so far, from which the same call goes on where it was interrupted; whoever
    calls forgets it once the result is written.

    Raises:
        InputError: the text or the checkpoint cannot be read, the model has no tokenizer, or a tower must be named.
        MissingPartError: torch or transformers is not installed.
        RefusedError: the model reads no text, a number of layers is out of range, or what attention adds to the stream
            cannot be found.
        OutputError: ``kept`` cannot be written.
    """
    from gatenorm_export.scoring import ScoreRequest, score_model

    progress, start = progress or Quiet(), time.perf_counter()
    text = load_text(request.text)
    _require_text(spec, request.tower or "")
    tower = tower_of(spec, request.tower)
    cut = cut_of(tower.n_layers, request.cut, spec.name)
    work = KeptWork(kept, spec.digest, tower.name, text.sha256, request.max_text_tokens, device_name())
    scores = work.once(
        "scores",
        TypeAdapter(LayerScores),
        lambda: score_model(spec, ScoreRequest(towers=(tower.name,), exact=True), progress=progress),
    )
    gate = {entry.layer: entry.score for entry in scores.of_tower(tower.name)}
    with progress.task("load the framework model"):
        model, tokenizer = load_framework_model(spec, tower.name)
    if tokenizer is None:
        raise InputError(f"{spec.path}: holds no tokenizer to read {text.name} with; copy the model's there")
    windows = cut_windows(text, tokenizer, model.config, limit=request.max_text_tokens)
    modules = adapter_for(spec.architecture).tower(tower.name)
    measured = measure_layers(
        model, modules, windows, n_layers=tower.n_layers, name=spec.name, kept=work, progress=progress
    )
    found = (
        agreement("norm_ratio", gate, {layer: row.norm_ratio for layer, row in enumerate(measured)}, cut),
        agreement("cosine", gate, {layer: row.cosine for layer, row in enumerate(measured)}, cut),
    )
    return CorrelationReport(
        convention=scores.convention,
        model_name=spec.name,
        model_digest=scores.model.query_key_digest,
        tower=tower.name,
        text=text.name,
        text_sha256=text.sha256,
        n_tokens=len(windows.tokens),
        window_tokens=windows.length,
        cut=cut,
        cut_asked=request.cut is not None,
        lowest=lowest(gate, cut),
        layers=tuple(
            LayerMeasures(layer=layer, gate_norm=gate[layer], norm_ratio=row.norm_ratio, cosine=row.cosine)
            for layer, row in enumerate(measured)
        ),
        agreements=found,
        warning=warning_of(found),
        sentence=" ".join(entry.sentence for entry in found),
        seconds=time.perf_counter() - start + work.seconds,
        command=request.command,
    )


def tower_of(spec: ModelSpec, asked: str | None) -> TowerSpec:
    """The tower to measure: the only one, or the one that was asked for.

    Raises:
        RefusedError: there are several and none was named, or there is none of that name.
    """
    names = [tower.name for tower in spec.towers]
    if asked is None and len(names) == 1:
        return spec.towers[0]
    if asked is None:
        raise RefusedError(f"{spec.name}: has several towers; choose one with --tower {'|'.join(names)}")
    if asked not in names:
        listed = ", ".join(names) if names != [""] else "a single one, without a name"
        raise RefusedError(f"--tower {asked}: {spec.name} has no such tower; it has {listed}")
    return spec.tower(asked)


def _require_text(spec: ModelSpec, tower: str) -> None:
    """Check that there is a framework model to run, and that it reads text."""
    if spec.source == "onnx":
        raise RefusedError(f"{spec.name}: an ONNX file has no framework model to measure in; name its checkpoint")
    if is_remote(spec.path):
        raise RefusedError(f"{spec.name}: forward passes need the whole checkpoint on disk; fetch it, name its folder")
    # An architecture that is not in the table is scored by guessing; what its attention adds cannot be guessed.
    adapter_for(spec.architecture)
    reads = _NO_TEXT.get(kind_of(spec, tower).kind.name)
    if reads is not None:
        what = f"{spec.architecture}, tower {tower}," if tower else spec.architecture
        raise RefusedError(f"{spec.name}: {what} reads {reads}, not text, and correlate measures on text")
