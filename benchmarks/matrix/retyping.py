"""Change the arithmetic of a graph: to another floating-point type, to unrounded activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def in_float32(graph: Path | bytes) -> bytes:
    """A bfloat16 graph in float32: the CPU has no arithmetic for the former."""
    import onnx

    data: bytes = retype(_read(graph), onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT).SerializeToString()
    return data


def with_float_activations(graph: Path | bytes) -> bytes:
    """A graph whose MatMulNBits multiply in float32.

    At accuracy level 4, the model builder's default, they round activations to 8 bits. Where a fused norm and a plain
    one differ in the last bit, that rounding flips now and then, and 1e-7 becomes 1e-2.
    """
    model = _read(graph)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(kept)
    data: bytes = model.SerializeToString()
    return data


def _read(graph: Path | bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(graph) if isinstance(graph, bytes) else onnx.load(graph)


def retype(model: Any, old: int, new: int) -> Any:
    """Every tensor, constant, cast and declared type ``old`` (a TensorProto type) becomes ``new``; in place."""
    _graph(model.graph, old, new)
    return model


def _graph(graph: Any, old: int, new: int) -> None:
    for tensor in graph.initializer:
        _tensor(tensor, old, new)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == old:
            value.type.tensor_type.elem_type = new
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _tensor(attribute.t, old, new)
            elif attribute.HasField("g"):
                _graph(attribute.g, old, new)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == old:
                attribute.i = new


# Cast, the random and range operators, and ai.onnx Attention's precision of the softmax.
_TYPE_ATTRIBUTES = ("to", "dtype", "softmax_precision", "stash_type")


def _finfo(dtype: np.dtype[Any]) -> Any:
    # numpy's own finfo knows no bfloat16.
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return finfo(dtype)


def _tensor(tensor: Any, old: int, new: int) -> None:
    from onnx import numpy_helper
    from onnx.helper import tensor_dtype_to_np_dtype

    if tensor.data_type != old:
        return
    values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float64)
    dtype = np.dtype(tensor_dtype_to_np_dtype(new))
    limits = _finfo(dtype)
    # float32's lowest number, a usual mask, must not become -inf: a row of those makes Softmax return NaN.
    finite = np.isfinite(values)
    values[finite] = np.clip(values[finite], float(limits.min), float(limits.max))
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), name))
