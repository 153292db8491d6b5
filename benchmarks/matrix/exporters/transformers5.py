"""The ONNX exporter of transformers 5 (``transformers.exporters``), plain and fused for an ONNX Runtime provider.

Each ``export*`` function takes a transformers model in eval mode, the row it was made from, and a folder; it writes
``model.onnx`` (weights in ``model.onnx.data``, as that exporter does) and returns the path of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from benchmarks.matrix.exporters.cannot_export import CannotExport
from benchmarks.matrix.exporters.dynamic_cache_pytree import forget_dynamic_cache
from benchmarks.matrix.exporters.export_context import export_failures
from benchmarks.matrix.exporters.quiet import quiet_export
from benchmarks.matrix.exporters.traced_example import decoder_example, encoder_example, is_decoder

Provider = Literal["cpu", "cuda", "webgpu", "dml"]


def export(model: Any, row: Any, folder: Path) -> Path:
    """No fusions; decoders with KV cache."""
    return _export(model, folder, fusions=None)


def export_no_past(model: Any, row: Any, folder: Path) -> Path:
    """No fusions, no cache."""
    return _export(model, folder, fusions=None, past=False)


def export_ort(model: Any, row: Any, folder: Path) -> Path:
    """Fused for ONNX Runtime's CPU provider: SkipLayerNormalization, RotaryEmbedding, packed projections."""
    return _export(model, folder, fusions="cpu")


def export_ort_decode(model: Any, row: Any, folder: Path) -> Path:
    """One new token at a time: the only cached graph in which the CPU fusions make GroupQueryAttention."""
    return _export(model, folder, fusions="cpu", one_token=True)


def export_ort_prefill(model: Any, row: Any, folder: Path) -> Path:
    """A prefill that starts the cache: no past inputs, present outputs, and GroupQueryAttention without a past."""
    return _export(model, folder, fusions="cpu", past=False, start_cache=True)


def export_cuda(model: Any, row: Any, folder: Path) -> Path:
    """Fused for CUDA: MultiHeadAttention keeps several new tokens, which the CPU provider runs as well."""
    return _export(model, folder, fusions="cuda")


def export_webgpu(model: Any, row: Any, folder: Path) -> Path:
    """Fused for WebGPU."""
    return _export(model, folder, fusions="webgpu")


def _export(
    model: Any,
    folder: Path,
    *,
    fusions: Provider | None,
    past: bool = True,
    start_cache: bool = False,
    one_token: bool = False,
) -> Path:
    import torch

    try:
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise CannotExport("the installed transformers has no exporters of its own; later releases of 5 do") from error

    path = folder / "model.onnx"
    forget_dynamic_cache()
    with quiet_export(), export_failures(), torch.no_grad():
        decoder = is_decoder(model)
        if not decoder and (one_token or start_cache):
            raise CannotExport(f"{type(model).__name__} has no cache")
        example = decoder_example(model, past=past) if decoder else encoder_example(model)
        arguments, dynamic = dict(example.arguments), dict(example.dynamic)
        if one_token:
            arguments, dynamic = _one_token(arguments, dynamic)
        if decoder:
            arguments["use_cache"] = past or start_cache  # the exporter takes it out again, into the config
        config = OnnxConfig(dynamic=True, dynamic_shapes=dynamic, ort_fusions=fusions)
        exported = OnnxExporter().export(model, arguments, config=config)
        OnnxExporter.save_program(exported.program, path)
    return path


def _one_token(arguments: dict[str, Any], dynamic: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The example with its last token only."""
    for name in ("input_ids", "position_ids"):
        if name in arguments:
            arguments[name] = arguments[name][:, :1].contiguous()
            dynamic[name] = {0: dynamic[name][0]}
    past = arguments["past_key_values"].layers[0].keys.shape[2]
    arguments["attention_mask"] = arguments["attention_mask"][:, : past + 1]
    if "position_ids" in arguments:
        arguments["position_ids"] = arguments["position_ids"] * 0 + past
    return arguments, dynamic
