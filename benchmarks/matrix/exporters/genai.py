"""The model builder of onnxruntime-genai, from a checkpoint written to disk.

Each ``export_*`` function takes a transformers model in eval mode, the row it was made from, and a folder; it writes
``model.onnx``, its data file, ``genai_config.json`` and the tokenizer there and returns the path of the graph; speech
models come as two graphs, ``encoder`` and ``decoder``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks.matrix.exporters.cannot_export import CannotExport
from benchmarks.matrix.exporters.quiet import quiet_export
from benchmarks.matrix.exporters.word_tokenizer import save_tokenizer

Precision = Literal["fp32", "fp16", "bf16", "int4", "int8"]
Provider = Literal["cpu", "cuda", "webgpu", "dml", "NvTensorRtRtx"]
Graphs = Path | dict[str, Path]


def export_fp32(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, fp32: GroupQueryAttention with packed QKV and rotary embedding inside."""
    return _export(model, folder, "fp32", "cpu")


def export_fp32_windowed(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, fp32, sliding layers with a ring buffer as cache (past lengths of two kinds in one graph)."""
    return _export(model, folder, "fp32", "cpu", "windowed_kv_cache=true")


def export_fp32_unpacked(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, fp32, with one projection each for Q, K and V."""
    return _export(model, folder, "fp32", "cpu", "fuse_qkv=false")


def export_fp16(model: Any, row: Any, folder: Path) -> Graphs:
    """CUDA, fp16 (the builder writes fp32 ends for the CPU); runs on the CPU provider too."""
    return _export(model, folder, "fp16", "cuda")


def export_int4(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, int4: MatMulNBits."""
    return _export(model, folder, "int4", "cpu")


def export_int4_qdq(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, int4 as DequantizeLinear and MatMul."""
    return _export(model, folder, "int4", "cpu", "use_qdq=true")


def export_int8(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, int8: MatMulNBits with 8 bits."""
    return _export(model, folder, "int8", "cpu")


def export_bf16(model: Any, row: Any, folder: Path) -> Graphs:
    """CUDA, bf16."""
    return _export(model, folder, "bf16", "cuda")


def export_webgpu(model: Any, row: Any, folder: Path) -> Graphs:
    """WebGPU, fp32: rotary embedding inside GroupQueryAttention, fp32 ends."""
    return _export(model, folder, "fp32", "webgpu")


def export_dml(model: Any, row: Any, folder: Path) -> Graphs:
    """DirectML, fp16: rotary embedding as an op of its own, fed with position_ids."""
    return _export(model, folder, "fp16", "dml")


def export_cuda_fp32(model: Any, row: Any, folder: Path) -> Graphs:
    """CUDA, fp32: com.microsoft Attention. The builder of 0.18 leaves its ends loose, so that no runtime loads it."""
    return _export(model, folder, "fp32", "cuda")


def export_cpu_fp16(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, fp16: MultiHeadAttention, and a mask made from the length of layer 0's past.

    The graph takes one new token at a time after the prompt. With fewer heads of keys than of queries the cache is
    concatenated and repeated before the operator.
    """
    return _export(model, folder, "fp16", "cpu")


def export_hidden_states(model: Any, row: Any, folder: Path) -> Graphs:
    """CPU, fp32, with logits of the last token only and the last hidden states as an output."""
    return _export(model, folder, "fp32", "cpu", "prune_lm_head=true", "include_hidden_states=true")


def _export(model: Any, folder: Path, precision: Precision, provider: Provider, *options: str) -> Graphs:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import onnxruntime_genai  # noqa: F401  puts the builder's own modules on the path
        from onnxruntime_genai.models.builder import create_model, parse_extra_options
    except ImportError as error:
        raise CannotExport(f"onnxruntime-genai is not installed ({error})") from error

    with tempfile.TemporaryDirectory(prefix="genai-checkpoint-") as name, quiet_export():
        checkpoint = Path(name) / "checkpoint"
        _save_checkpoint(model, checkpoint)
        # Sliding layers otherwise want a ring buffer of the window's size, which only that library's own client makes.
        if not any(option.startswith("windowed_kv_cache") for option in options):
            options = (*options, "windowed_kv_cache=false")
        place = (str(checkpoint), str(folder), precision, provider, str(Path(name) / "cache"))
        try:
            extra = parse_extra_options("", *place, list(options))
            _as_the_builder_reads(extra["hf_details"]["hf_config"])
            with _head_by_identity():
                create_model("", *place, **extra)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
            # It looks things up in configs without asking whether they are there.
            what = f"{type(error).__name__}: {str(error).replace(str(checkpoint), 'given')}"
            raise CannotExport(f"onnxruntime-genai's builder does not take {type(model).__name__} ({what})") from error
    if not model.config.is_encoder_decoder:
        return folder / "model.onnx"
    _fit_frames(folder / "encoder.onnx", 2 * model.config.max_source_positions)
    return {name: folder / f"{name}.onnx" for name in ("encoder", "decoder")}


def _fit_frames(encoder: Path, frames: int) -> None:
    """The builder declares 30 seconds of sound, whatever the model; ONNX Runtime holds the client to it."""
    import onnx

    graph = onnx.load(encoder, load_external_data=False)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = frames
    # Shapes that followed from it.
    del graph.graph.value_info[:]
    onnx.save(graph, encoder)


def _as_the_builder_reads(config: Any) -> None:
    """Say in the config, in the builder's words, what transformers 5 says in its own."""
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "full_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_theta = rope["full_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]
    if hasattr(config, "original_max_position_embeddings") and (rope or {}).get("rope_type") == "default":
        # Lengths that differ mean long rope to the builder, whatever the rope type.
        config.original_max_position_embeddings = config.max_position_embeddings


def _save_checkpoint(model: Any, folder: Path) -> None:
    """Config, weights and tokenizer as the builder reads them."""
    model.save_pretrained(folder)
    save_tokenizer(model.config.vocab_size, folder)


@contextlib.contextmanager
def _head_by_identity() -> Iterator[None]:
    """Let the builder tell the language model head by identity.

    It takes every Linear with as many outputs as the vocabulary has words for the head. In a tiny model that is also
    an MLP projection of layer 0, and the graph's logits would come from there.
    """
    from builders.base import Model

    by_size = Model.has_lm_head

    def has_lm_head(self: Any, module: Any) -> bool:
        find = getattr(self.weights, "get_output_embeddings", None)
        head = find() if find is not None else None
        return bool(by_size(self, module)) if head is None else module is head

    Model.has_lm_head = has_lm_head
    try:
        yield
    finally:
        Model.has_lm_head = by_size
