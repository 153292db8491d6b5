"""Decoders whose cache goes through the ai.onnx Attention operator (opset 23).

torch.onnx.export at opset 23 concatenates the cache outside of ``Attention``. Tools that write such graphs by hand give
the operator ``past_key`` and ``past_value`` and take ``present_key`` and ``present_value`` from it. Here transformers
runs a decoder with that operator as its attention function, and torch exports what it sees.

Each ``export*`` function takes a transformers decoder in eval mode, the row it was made from, and a folder; it writes
``model.onnx`` there, with optimum's cache names, and returns its path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.matrix.exporters.cannot_export import CannotExport
from benchmarks.matrix.exporters.export_context import export_failures, exportable_experts
from benchmarks.matrix.exporters.quiet import quiet_export
from benchmarks.matrix.exporters.traced_example import decoder_example, flat_arguments, is_decoder

_NAME = "ai_onnx_attention"


def export(model: Any, row: Any, folder: Path) -> Path:
    """Queries, keys and values as [batch, heads, length, head size]."""
    return _export(model, folder, merged=False)


def export_3d(model: Any, row: Any, folder: Path) -> Path:
    """Queries, keys and values as [batch, length, heads * head size], with the operator told the numbers of heads."""
    return _export(model, folder, merged=True)


def _export(model: Any, folder: Path, *, merged: bool) -> Path:
    import torch
    from torch.export import Dim

    if not is_decoder(model):
        raise CannotExport(f"{type(model).__name__} has no cache")
    path = folder / "model.onnx"
    with (
        quiet_export(),
        export_failures(),
        torch.no_grad(),
        exportable_experts(model),
        _attention_function(model, merged=merged) as module_of,
    ):
        example = decoder_example(model, "optimum")
        n_caches = len(example.cache)
        dynamic = [{0: Dim.DYNAMIC, 1: Dim.DYNAMIC}] * (len(example.input_names) - n_caches)
        dynamic += [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}] * n_caches
        torch.onnx.export(
            module_of(example.input_names[: len(example.input_names) - n_caches]),
            tuple(flat_arguments(example)),
            path,
            input_names=example.input_names,
            output_names=example.output_names,
            dynamic_shapes={"tensors": tuple(dynamic)},
            opset_version=23,
            dynamo=True,
            external_data=False,
        )
    _check(path, n_layers=n_caches // 2, model=model)
    return path


@contextlib.contextmanager
def _attention_function(model: Any, *, merged: bool) -> Iterator[Any]:
    """Let the model compute attention, cache update included, with the operator; yields a maker of flat modules."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    class PastLayer(DynamicLayer):  # type: ignore[misc]
        """Hands the new keys and values through: the operator joins them with the past."""

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            return key_states, value_states

    current: list[Any] = []

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **rest: Any
    ) -> tuple[Any, None]:
        if rest.get("sliding_window") is None and attention_mask is None:
            raise CannotExport("the operator's own causal mask does not know where the past ends: a mask is needed")
        if rest.get("s_aux") is not None:
            raise CannotExport(f"{type(model).__name__} has attention sinks, which the operator does not know")
        layer = current[-1].layers[module.layer_idx] if current else None
        past = (layer.keys, layer.values) if layer is not None else (None, None)
        heads, kv_heads = query.shape[1], key.shape[1]
        options: dict[str, Any] = {"scale": scaling, "softcap": float(rest.get("softcap") or 0.0)}
        if merged:
            query, key, value = (tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value))
            options |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
        result, present_key, present_value, _ = torch.onnx.ops.attention(
            query, key, value, attention_mask, *past, **options
        )
        if layer is not None:
            layer.keys, layer.values = present_key, present_value
        if merged:
            return result.unflatten(2, (heads, -1)), None
        return result.transpose(1, 2).contiguous(), None

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, names: list[str]) -> None:
            super().__init__()
            self.model = model
            self.names = names

        def forward(self, *tensors: Any) -> Any:
            cache = DynamicCache()
            cache.layers = []
            past = tensors[len(self.names) :]
            for key, value in zip(past[::2], past[1::2], strict=True):
                layer = PastLayer()
                layer.keys, layer.values, layer.is_initialized = key, value, True
                layer.dtype, layer.device = key.dtype, key.device
                cache.layers.append(layer)
            current.append(cache)
            arguments = dict(zip(self.names, tensors, strict=False))
            self.model.config._attn_implementation = _NAME
            try:
                logits = self.model(**arguments, past_key_values=cache, use_cache=True).logits
            finally:
                current.pop()
                self.model.config._attn_implementation = before
            return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))

    before = model.config._attn_implementation
    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    yield lambda names: Flat(names).eval()


def _check(path: Path, *, n_layers: int, model: Any) -> None:
    """Models with an attention of their own never ask for the registered function."""
    import onnx

    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "Attention"]
    with_cache = [node for node in nodes if len(node.input) > 5 and len(node.output) > 2]
    if len(with_cache) != n_layers:
        path.unlink()
        raise CannotExport(
            f"{type(model).__name__}: {len(with_cache)} of {n_layers} layers use the Attention operator with a cache; "
            "its attention cannot be replaced"
        )
