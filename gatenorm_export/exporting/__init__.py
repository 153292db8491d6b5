"""From a checkpoint to ONNX graphs, through optimum, validated against the framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatenorm_export.architectures import adapter_for
from gatenorm_export.artifacts import staged_folder
from gatenorm_export.comparing import check_faithfulness
from gatenorm_export.errors import InputError, MissingPartError, RefusedError
from gatenorm_export.exporting.optimum_graphs import optimum_export
from gatenorm_export.framework import load_framework_model
from gatenorm_export.graphs import GRAPH_NAME, claim_place, load_graph, manifest_file
from gatenorm_export.kinds import SPEECH_GRAPHS, ModelKind, graph_tower, kind_of
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import ExportedGraph, FileDigest, ModelSpec
from gatenorm_export.silence import silenced, silent_natives


def export_model(spec: ModelSpec, output: Path, *, tower: str = "", progress: Progress | None = None) -> ExportedGraph:
    """Export a model in fp32, with a manifest: a decoder with KV cache, a text encoder, a vision tower, or Whisper.

    ``output`` is a folder, for ``model.onnx`` with config, generation config and tokenizer, or the name of a ``.onnx``
    file, for the graph alone. Of CLIP and SigLIP one tower is exported by itself. Whisper always becomes two graphs in
    a folder, each with a manifest; the record of ``tower``'s is returned, the decoder's when none is named.

    optimum only warns when its own validation fails, with a tolerance of 1e-5 that fp32 does not keep over thirty
    layers. So the export is judged by our faithfulness check instead, with nothing dropped: on inputs of other lengths
    than the traced example, a decoder with its cache and left padding. A graph that fails is not kept.

    Raises:
        MissingPartError: torch, transformers or optimum is not installed.
        RefusedError: this model is not taken, or the graph does not compute what the framework does.
        InputError: Whisper's graphs cannot be one file.
        OutputError: the output cannot be written.
    """
    progress = progress or Quiet()
    kind = kind_of(spec, tower)
    # Without it no graph could be checked.
    adapter_for(spec.architecture)
    as_file = output.suffix == ".onnx"
    if as_file and len(kind.kind.graphs) > 1:
        raise InputError(f"{output}: {spec.name} becomes {len(kind.kind.graphs)} graphs; name a folder for them")
    with progress.task("load the framework model"):
        model, tokenizer = load_framework_model(spec, tower)
    folder, name = (output.parent, output.name) if as_file else (output, kind.graph)
    graphs = {name: graph_tower(tower)} if kind.kind.name != "speech" else {v: k for k, v in SPEECH_GRAPHS.items()}
    for graph in graphs:
        claim_place(folder / graph)
    with staged_folder(folder) as staging:
        with progress.task("export to ONNX"), silenced(), silent_natives():
            _export(spec, kind, model, tokenizer, staging)
        if as_file:
            _keep_graph_alone(staging, name)
        records = {graph: _checked(spec, kind, staging, graph, held, model, progress) for graph, held in graphs.items()}
        for graph, record in records.items():
            record.save(staging / manifest_file(Path(graph)).name)
    return records[name]


def _export(spec: ModelSpec, kind: ModelKind, model: Any, tokenizer: Any, staging: Path) -> None:
    shapes = {}
    if kind.kind.name == "speech":
        # The encoder takes exactly as many frames as it has positions for, two a position.
        shapes["nb_max_frames"] = 2 * model.config.max_source_positions
    try:
        optimum_export(model, staging, kind.task, **shapes)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
    except (OSError, MissingPartError):
        raise
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
        raise RefusedError(
            f"{spec.name}: optimum cannot export {type(model).__name__} ({type(error).__name__}: {lines[0][:300]})"
        ) from error
    for path in staging.glob("*.onnx"):
        # optimum also leaves the two decoders that it merged.
        if path.name not in kind.kind.graphs:
            path.unlink()
            path.with_name(f"{path.name}_data").unlink(missing_ok=True)
    _copy_preprocessors(spec, staging)


def _copy_preprocessors(spec: ModelSpec, staging: Path) -> None:
    """Copy what says how images and sounds become input; optimum copies it from the hub's cache only."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        source = Path(spec.path) / name
        if source.is_file() and not (staging / name).exists():
            (staging / name).write_bytes(source.read_bytes())


def _checked(
    spec: ModelSpec, kind: ModelKind, staging: Path, graph: str, tower: str, model: Any, progress: Progress
) -> ExportedGraph:
    check = check_faithfulness(staging / graph, spec, (), model=model, tower=tower, progress=progress)
    if not check.passed:
        raise RefusedError(f"{spec.name}: the exported graph differs from the framework model ({check.reason})")
    others = tuple(set(kind.kind.graphs) - {graph})
    files = [path for path in sorted(staging.iterdir()) if not path.name.startswith(others)]
    return ExportedGraph(
        model=spec,
        tower=tower,
        graph=graph,
        files=tuple(FileDigest.of(path, folder=staging) for path in files),
        exporter=f"optimum {kind.task}",
        opset=_opset(staging / graph),
        precision="fp32",
        max_abs_error=check.max_abs_error or 0.0,
        tolerance=check.tolerance or 0.0,
    )


def _keep_graph_alone(staging: Path, name: str) -> None:
    """Save the exported graph under another name, its outside tensors too, and remove everything else."""
    import onnx_ir as ir

    exported = list(staging.iterdir())
    model = load_graph(staging / GRAPH_NAME)
    outside = any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    target = staging / "renamed" / name
    target.parent.mkdir()
    ir.save(model, target, external_data=f"{name}.data" if outside else None)
    for path in exported:
        path.unlink()
    for path in target.parent.iterdir():
        path.replace(staging / path.name)
    target.parent.rmdir()


def _opset(graph: Path) -> int:
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
