"""From what a user calls a model to the graph and the scores that a sweep works on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import RefusedError
from gatenorm_export.graphs import GRAPH_NAME, graph_file, graph_manifest, manifest_file
from gatenorm_export.kinds import require_decoder
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.provenance import require_graph, require_model
from gatenorm_export.records import LayerScores, ModelSpec, tool_versions

_SCORES = "scores.json"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A graph, the checkpoint it came from where that is known, and the scores where they are needed."""

    graph: Path
    model: ModelSpec | None
    scores: LayerScores | None
    scores_sha256: str | None


def prepare(
    name: str, out: Path, *, scores: Path | None, needs_scores: bool, progress: Progress | None = None
) -> Subject:
    """The graph and scores of ``name``: a graph as it is, a checkpoint scored and exported into ``out``.

    Scores of a graph are ``scores``, or else the ``scores.json`` in the folder above the graph's. What ``out`` holds
    of the same checkpoint, made by the same tools, is used again.

    Raises:
        InputError: there is no such model, or a file of it is damaged.
        RefusedError: the scores are of another model, or ``out`` holds the export of one.
        MissingPartError, OutputError: as scoring and exporting.
    """
    progress = progress or Quiet()
    path = Path(name)
    if path.suffix == ".onnx" or (path / GRAPH_NAME).is_file():
        return _graph(graph_file(path), scores, needs_scores)
    from gatenorm_export.sources import resolve_model

    spec = resolve_model(name, progress=progress)
    require_decoder(spec, "sweep")
    graph = _exported(spec, out / "base", progress)
    if not needs_scores:
        return Subject(graph, spec, None, None)
    found = scores or _scored(spec, out / _SCORES, progress)
    return _with_scores(graph, spec, found)


def _graph(graph: Path, scores: Path | None, needs_scores: bool) -> Subject:
    record = graph_manifest(graph, digest_data=False)
    spec = record.model if record is not None else None
    beside = graph.resolve().parent.parent / _SCORES
    found = scores or (beside if beside.is_file() else None)
    if found is None or not needs_scores:
        return Subject(graph, spec, None, None)
    return _with_scores(graph, spec, found)


def _with_scores(graph: Path, spec: ModelSpec | None, path: Path) -> Subject:
    scores = LayerScores.load(path)
    require_graph(scores, graph, graph_manifest(graph, digest_data=False))
    return Subject(graph, spec, scores, sha256_of(path))


def _exported(spec: ModelSpec, folder: Path, progress: Progress) -> Path:
    graph = folder / GRAPH_NAME
    if graph.is_file() and manifest_file(graph).is_file():
        record = graph_manifest(graph)
        model = record.model if record is not None else None
        if model is None or model.digest != spec.digest:
            raise RefusedError(f"{folder}: holds the graph of another model than {spec.name}; choose another output")
        if record is not None and record.versions == tool_versions():
            progress.say(f"export: unchanged inputs, reusing {graph}")
            return graph
    from gatenorm_export.exporting import export_model

    export_model(spec, folder, progress=progress)
    return graph


def _scored(spec: ModelSpec, path: Path, progress: Progress) -> Path:
    if path.is_file():
        known = LayerScores.load(path)
        require_model(known, spec, where=str(path.parent))
        if known.versions == tool_versions():
            progress.say(f"score: unchanged inputs, reusing {path}")
            return path
    from gatenorm_export.scoring import score_model

    score_model(spec, progress=progress).save(path)
    return path
