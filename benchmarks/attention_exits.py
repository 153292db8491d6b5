"""Find the output projection of every attention in an ONNX file and set it to zero: a reference without any surgery.

It knows nothing of graph_passes. A norm with a shift behind the projection would let the shift through; sandwich norms
are RMS norms, which have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

_OPERATORS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention"})
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "MatMulNBits"})
# Between a softmax and the product with the values, and between that product and the output projection.
_STEPS = frozenset(
    {"Cast", "Where", "Slice", "Dropout", "Identity", "Mul", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat"}
    | {"QuantizeLinear", "DequantizeLinear"}
)
_SCORE_STEPS = _STEPS | {"Add", "Sub", "Div", "Tanh"}
_SKIP_NORMS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
_SKIP_BIAS = 4


class Exits:
    """The attention exits of a model, in the order of the graph; each is the set of initializers that make it zero."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self._tensors[node.output[0]] = node.attribute[0].t
        self._producers = {name: node for node in model.graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        found = (self._exit(node) for node in model.graph.node)
        self.layers: tuple[frozenset[str], ...] = tuple(dict.fromkeys(names for names in found if names))

    def silence(self, layers: Iterable[int]) -> None:
        """Set the exits of these layers to zero, in place."""
        for layer in layers:
            for name in self.layers[layer]:
                tensor = self._tensors[name]
                zero = np.zeros_like(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(zero, tensor.name))

    def _exit(self, node: onnx.NodeProto) -> frozenset[str] | None:
        if node.op_type == "Softmax":
            if not any(self._is_core_product(above) for above in self._above(node.input[0])):
                return None
            context = next((below for below in self._below(node.output[0]) if self._is_core_product(below)), None)
        else:
            context = node if node.op_type in _OPERATORS else None
        if context is None:
            return None
        exit_ = next((below for below in self._below(context.output[0]) if self._weight(below)), None)
        return frozenset(self._silencers(exit_)) if exit_ is not None else None

    def _silencers(self, node: onnx.NodeProto) -> Iterator[str]:
        """Weight and bias of a projection."""
        weight = self._weight(node)
        assert weight is not None
        yield weight
        own_bias = {"Gemm": 2, "MatMulNBits": 5}.get(node.op_type)
        if own_bias is not None and len(node.input) > own_bias and node.input[own_bias]:
            yield node.input[own_bias]
            return
        for reader in self._readers.get(node.output[0], ()):
            if reader.op_type == "Add":
                yield from (name for name in reader.input if name in self._tensors)
            elif reader.op_type in _SKIP_NORMS and len(reader.input) > _SKIP_BIAS and reader.input[_SKIP_BIAS]:
                yield reader.input[_SKIP_BIAS]

    def _weight(self, node: onnx.NodeProto) -> str | None:
        """The initializer which, when it is zero, makes a projection's weight zero; None for any other node."""
        if node.op_type not in _PRODUCTS:
            return None
        if node.op_type == "MatMulNBits":
            return str(node.input[2])
        name = str(node.input[1])
        while name not in self._tensors:
            above = self._producers.get(name)
            if above is None or above.op_type not in {"Transpose", "Cast", "Identity", "DequantizeLinear"}:
                return None
            name = above.input[1 if above.op_type == "DequantizeLinear" else 0]
        return name

    def _is_core_product(self, node: onnx.NodeProto) -> bool:
        activations = all(name not in self._tensors for name in node.input[:2])
        return node.op_type in {"MatMul", "FusedMatMul", "Einsum"} and activations and self._weight(node) is None

    def _above(self, name: str) -> Iterator[onnx.NodeProto]:
        seen, stack = {name}, [name]
        while stack:
            node = self._producers.get(stack.pop())
            if node is None:
                continue
            yield node
            if node.op_type in _SCORE_STEPS:
                stack += [above for above in node.input if above and above not in seen]
                seen.update(node.input)

    def _below(self, name: str) -> Iterator[onnx.NodeProto]:
        queue, seen = [name], {name}
        for current in queue:
            for node in self._readers.get(current, ()):
                yield node
                if node.op_type in _STEPS:
                    queue += [below for below in node.output if below not in seen]
                    seen.update(node.output)
