"""What one call of a decoder graph has to do: bytes and operations, counted in the graph without running it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.benching.probing import ITEMSIZE
from gatenorm_export.benching.protocol import Footprint
from gatenorm_export.graphs import load_graph
from gatenorm_export.inspecting import inspect_graph
from gatenorm_export.pruning import describe_graph
from gatenorm_export.records.bench import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_PRODUCTS: dict[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "FusedMatMul": (0, 1),
    "FusedGemm": (0, 1),
    "GemmFastGelu": (0, 1),
    "MatMulInteger": (0, 1),
    "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "Conv": (1,),
    "FusedConv": (1,),
    "ConvInteger": (1,),
    "MatMulNBits": (1,),
    "MatMulBnb4": (1,),
}
"""Operators that multiply with a matrix of weights, and the inputs where that may be."""

_CARRIERS = frozenset(
    {"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"}
)
"""Operators through which weights reach a product: the bytes that are read are those of the stored tensor."""

_SCALES_AND_ZEROS: dict[str, tuple[int, ...]] = {"MatMulNBits": (2, 3), "MatMulBnb4": (2,)}
"""Inputs that are read along with packed weights."""

_SCORE_PASSES = 4
"""Attention that is written out stores its scores, reads and writes them in the softmax, and reads them again."""

_KV_PASSES = 3
"""A present tensor is the past and the new tokens copied into one, and is read by attention after that."""


_LIVE_ACTIVATIONS = 4
"""Tensors as wide as the widest matrix that are there at the same time."""


def graph_work(graph: Path) -> Work | str:
    """Count a graph's matrices, cache and attention; or the reason why its attention cannot be counted.

    Every matrix is counted once, however often it is shared: the embedding when it is also the head, but not an
    embedding that rows are only gathered from.

    Raises:
        InputError: not an ONNX file.
    """
    found = inspect_graph(graph)
    facts = describe_graph(graph).facts
    model = load_graph(graph)
    weights = _weights(model)
    dtype = _dtype(weights)
    flops_per_pair, score_bytes = 0, 0
    for sublayer in found.sublayers:
        if sublayer.kind != "self":
            continue
        if sublayer.n_heads is None or sublayer.head_dim is None:
            return f"the heads of {sublayer.node} cannot be told from the graph"
        # Two products of n_heads x head_dim for each pair of query and key, two operations each.
        flops_per_pair += 4 * sublayer.n_heads * sublayer.head_dim
        if sublayer.operator.endswith("Softmax"):
            score_bytes += _SCORE_PASSES * sublayer.n_heads * ITEMSIZE[dtype]
    n_bytes, elements = _matrices(model, weights)
    return Work(
        weight_bytes=n_bytes,
        flops_per_token=2 * elements,
        n_attention=facts.n_attention,
        attention_flops_per_pair=flops_per_pair,
        kv_bytes_per_token=facts.kv_bytes_per_token,
        kv_passes=_KV_PASSES,
        score_bytes_per_pair=score_bytes,
        skips_masked=False,
        dtype=dtype,
    )


def graph_footprint(graph: Path, work: Work | None) -> Footprint:
    """What a prefill of a graph takes for its time; scores are known where its ``work`` is.

    Measured with ONNX Runtime 1.32 on the CPU, on a graph of written-out attention with 6 heads, a width of 72 and one
    of 100 within the feed-forward, in single precision: 115 bytes for each pair of query and key, and 1,600 for each
    token beside cache and logits. Fused attention took nothing that grew with the pairs.
    """
    model = load_graph(graph)
    weights = _weights(model)
    itemsize = ITEMSIZE[work.dtype if work is not None else _dtype(weights)]
    outputs = list(model.graph.outputs)
    logits = next((value for value in outputs if "logits" in (value.name or "")), outputs[0])
    vocabulary = logits.shape[-1] if logits.shape is not None and len(logits.shape) else None
    size = vocabulary if isinstance(vocabulary, int) else 0
    widths = [max(shape) for shape in (tensor.shape.numpy() for tensor in weights.values()) if size not in shape]
    n_attention = work.n_attention if work is not None else 0
    return Footprint(
        logits_per_token=size * itemsize,
        activations_per_token=_LIVE_ACTIVATIONS * max(widths, default=0) * itemsize,
        scores_per_pair=work.score_bytes_per_pair // n_attention if work is not None and n_attention else 0,
    )


def _dtype(weights: Mapping[str, ir.TensorProtocol]) -> str:
    """The type that a graph computes in, as numpy calls it, by the greater part of its matrices' bytes."""
    sizes: dict[str, int] = {}
    for tensor in weights.values():
        name = tensor.dtype.name.lower()
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    # Quantised matrices are multiplied by numbers of the graph's own type, which is float32 where nothing else is said.
    kind = max(sizes, key=lambda name: sizes[name]) if sizes else "float"
    return {"float16": "float16", "bfloat16": "bfloat16", "double": "float64"}.get(kind, "float32")


def _matrices(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> tuple[int, int]:
    """Bytes and elements of all matrices that are multiplied with."""
    n_bytes, elements = 0, 0
    for tensor in weights.values():
        n_bytes += tensor.nbytes
        elements += math.prod(tensor.shape.numpy())
    packed = 0
    for node in _nodes(model):
        if node.op_type in _SCALES_AND_ZEROS:
            n_bytes += sum(value.nbytes for value in _constants(node, _SCALES_AND_ZEROS[node.op_type]))
            # Packed weights have K x N elements, whatever the shape of their bytes.
            stored = sum(math.prod(value.shape.numpy()) for value in _constants(node, _PRODUCTS[node.op_type]))
            k, n = (node.attributes.get_int(name, 0) for name in ("K", "N"))
            packed += k * n - stored
    return n_bytes, elements + packed


def _weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Every matrix of weights by the name of its value."""
    found: dict[str, ir.TensorProtocol] = {}
    for node in _nodes(model):
        for place in _PRODUCTS.get(node.op_type, ()):
            value = _source(node.inputs[place]) if place < len(node.inputs) else None
            if value is not None and value.const_value is not None and len(value.const_value.shape) >= 2:
                found[value.name or str(id(value))] = value.const_value
    return found


def _source(value: ir.Value | None) -> ir.Value | None:
    """The initializer or constant behind what may dequantise, transpose or reshape it; None where there is none."""
    while value is not None:
        node = value.producer()
        if node is None or value.const_value is not None:
            return value if value.const_value is not None else None
        if node.op_type not in _CARRIERS or not node.inputs:
            return None
        value = node.inputs[0]
    return None


def _constants(node: ir.Node, places: tuple[int, ...]) -> list[ir.TensorProtocol]:
    values = [node.inputs[place] for place in places if place < len(node.inputs)]
    return [value.const_value for value in values if value is not None and value.const_value is not None]


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    import onnx_ir as ir

    yield from ir.traversal.RecursiveGraphIterator(model.graph)
