"""Decoders with their weights in few bits, as quantisers write them: QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def quantised(graph: Path, output: Path, kind: Literal["fp8", "int4", "plain"], *, wrong: int | None = None) -> Path:
    """``graph`` with the second factor of every MatMul in 4 bits, or both factors in fp8.

    "plain" has the numbers of "int4" in float32, which is what an engine computes with. ``wrong`` is the number of a
    MatMul whose weights are negated.
    """
    model = onnx.load(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            weight = numpy_helper.to_array(weights[node.input[1]]) * (-1 if count == wrong else 1)
            name = f"weight{count}"
            if kind == "fp8":
                nodes += _fp8(model.graph, node, weight, name)
            else:
                _int4(model.graph, nodes, weight, name, packed=kind == "int4")
            node.input[1] = name
            count += 1
        nodes.append(node)
    assert count, "there is nothing to quantise"
    model.opset_import[0].version = max(model.opset_import[0].version, 21)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, output)
    return output


def _int4(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], weight: np.ndarray, name: str, *, packed: bool) -> None:
    scales = (np.abs(weight).max(axis=0) / 7).astype(np.float32)
    numbers = np.round(weight / scales)
    if not packed:
        graph.initializer.append(numpy_helper.from_array((numbers * scales).astype(np.float32), name))
        return
    codes = helper.make_tensor(f"{name}_q", TensorProto.INT4, weight.shape, numbers.astype(np.int8).reshape(-1))
    graph.initializer.extend([codes, numpy_helper.from_array(scales, f"{name}_s")])
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [name], axis=1))


def _fp8(graph: onnx.GraphProto, node: onnx.NodeProto, weight: np.ndarray, name: str) -> list[onnx.NodeProto]:
    scale = np.float32(np.abs(weight).max() / 448)
    codes = (weight / scale).astype(ml_dtypes.float8_e4m3fn).tobytes()
    graph.initializer.extend(
        [
            helper.make_tensor(f"{name}_q", TensorProto.FLOAT8E4M3FN, weight.shape, codes, raw=True),
            helper.make_tensor(f"{name}_z", TensorProto.FLOAT8E4M3FN, (), b"\0", raw=True),
            numpy_helper.from_array(scale, f"{name}_s"),
            numpy_helper.from_array(np.float32(8 / 448), f"{name}_t"),
        ]
    )
    read = node.input[0]
    node.input[0] = f"{name}_read"
    return [
        helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [name]),
        helper.make_node("QuantizeLinear", [read, f"{name}_t", f"{name}_z"], [f"{name}_rounded"]),
        helper.make_node("DequantizeLinear", [f"{name}_rounded", f"{name}_t"], [f"{name}_read"]),
    ]
