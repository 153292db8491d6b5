"""From a checkpoint to an ONNX graph with KV cache, through optimum, validated against the framework."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.artifacts import staged_folder
from gatenorm_export.comparing import check_faithfulness
from gatenorm_export.errors import RefusedError, needs
from gatenorm_export.framework import load_framework_model
from gatenorm_export.graphs import GRAPH_NAME, claim_place, load_graph, manifest_file
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import ExportedGraph, FileDigest, ModelSpec
from gatenorm_export.silence import silenced

_TASK = "text-generation-with-past"


def export_model(spec: ModelSpec, output: Path, *, progress: Progress | None = None) -> ExportedGraph:
    """Export a decoder in fp32, with a manifest.

    ``output`` is a folder, for ``model.onnx`` with config, generation config and tokenizer, or the name of a ``.onnx``
    file, for the graph alone.

    optimum only warns when its own validation fails, with a tolerance of 1e-5 that fp32 does not keep over thirty
    layers. So the export is judged by our faithfulness check instead, with nothing dropped: prefill, decoding with the
    cache and left padding against the framework. A graph that fails is not kept.

    Raises:
        MissingPartError: torch, transformers or optimum is not installed.
        RefusedError: the exporter does not take this model, or the graph does not compute what the framework does.
        OutputError: the output cannot be written.
    """
    progress = progress or Quiet()
    with needs("export", "exporting"):
        from optimum.exporters.onnx import onnx_export_from_model
    with progress.task("load the framework model"):
        model, tokenizer = load_framework_model(spec)
    as_file = output.suffix == ".onnx"
    folder, name = (output.parent, output.name) if as_file else (output, GRAPH_NAME)
    claim_place(folder / name)
    with staged_folder(folder) as staging:
        with progress.task("export to ONNX"), silenced():
            try:
                onnx_export_from_model(model, staging, task=_TASK, do_validation=False, device="cpu")
                if tokenizer is not None:
                    tokenizer.save_pretrained(staging)
            except OSError:
                raise
            except Exception as error:
                first = (str(error).strip().splitlines() or [""])[0]
                raise RefusedError(
                    f"{spec.name}: optimum cannot export {spec.architecture} ({type(error).__name__}: {first})"
                ) from error
        if as_file:
            _keep_graph_alone(staging, name)
        check = check_faithfulness(staging / name, spec, (), model=model, progress=progress)
        if not check.passed:
            raise RefusedError(f"{spec.name}: the exported graph differs from the framework model ({check.reason})")
        record = ExportedGraph(
            model=spec,
            graph=name,
            files=tuple(FileDigest.of(path, folder=staging) for path in sorted(staging.iterdir())),
            exporter=f"optimum {_TASK}",
            opset=_opset(staging / name),
            precision="fp32",
            max_abs_error=check.max_abs_error or 0.0,
            tolerance=check.tolerance or 0.0,
        )
        record.save(staging / manifest_file(Path(name)).name)
    return record


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
