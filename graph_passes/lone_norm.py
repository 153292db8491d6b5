"""The norm of a Skip*LayerNormalization without its sum, in a form that runtimes and the ONNX checker take."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graph_passes.operators import SKIP_NORMS, operator_of
from graph_passes.tape import Tape


def lone_norm(merge: ir.Node, total: ir.Value, opsets: Mapping[str, int]) -> ir.Value:
    """Norm ``total`` with the scale, shift and epsilon of ``merge``; new nodes are put in front of it.

    ONNX has LayerNormalization from opset 17 and RMSNormalization from 23. ONNX Runtime's SimplifiedLayerNormalization
    is in no ONNX schema, so a graph gets one only where it has others; elsewhere the norm is written out, as exporters
    do, and runtimes fuse it again.
    """
    skip = SKIP_NORMS[operator_of(merge)]
    scale = merge.inputs[skip.scale]
    shift = merge.inputs[skip.shift] if skip.shift is not None and skip.shift < len(merge.inputs) else None
    epsilon = merge.attributes["epsilon"].as_float() if "epsilon" in merge.attributes else skip.epsilon
    graph, opset = merge.graph, opsets.get("", 1)
    assert isinstance(graph, ir.Graph)
    simplified = skip.shift is None
    if not simplified and opset >= 17:
        op_type = "LayerNormalization"
    elif simplified and opset >= 23:
        op_type = "RMSNormalization"
    elif any(node.op_type == skip.alone[1] for node in graph):
        op_type = skip.alone[1]
    else:
        return _written_out(merge, total, scale, shift, epsilon, opset, centred=not simplified)
    operands = [value for value in (total, scale, shift) if value is not None]
    node = ir.node(op_type, operands, attributes={"axis": -1, "epsilon": epsilon}, name=f"{_base(merge)}/alone")
    node.outputs[0].name = f"{node.name}_output"
    graph.insert_before(merge, node)
    return node.outputs[0]


def norm_and_sum(merge: ir.Node, total: ir.Value, opsets: Mapping[str, int]) -> dict[ir.Value, ir.Value]:
    """What takes the place of a Skip*LayerNormalization's results once ``total`` is its sum."""
    replaced = {merge.outputs[0]: lone_norm(merge, total, opsets)}
    sum_output = SKIP_NORMS[operator_of(merge)].sum_output
    if len(merge.outputs) > sum_output:
        replaced[merge.outputs[sum_output]] = total
    return replaced


def _written_out(
    merge: ir.Node,
    total: ir.Value,
    scale: ir.Value | None,
    shift: ir.Value | None,
    epsilon: float,
    opset: int,
    *,
    centred: bool,
) -> ir.Value:
    tape = Tape(merge, f"{_base(merge)}/alone")

    def mean(value: ir.Value) -> ir.Value:
        # From opset 18 on the axes are an operand.
        if opset >= 18:
            last = tape.make("Constant", value=ir.tensor([-1], dtype=ir.DataType.INT64))
            return tape.make("ReduceMean", [value, last])
        return tape.make("ReduceMean", [value], axes=[-1])

    # Squares of half-precision numbers overflow, so the statistics are taken in float32, as the fused operator does.
    wide = total if total.dtype == ir.DataType.FLOAT else tape.make("Cast", [total], to=ir.DataType.FLOAT)
    if centred:
        wide = tape.make("Sub", [wide, mean(wide)])
    variance = mean(tape.make("Mul", [wide, wide]))
    safe = tape.make("Add", [variance, tape.make("Constant", value=ir.tensor(epsilon, dtype=ir.DataType.FLOAT))])
    normed = tape.make("Div", [wide, tape.make("Sqrt", [safe])])
    dtype = total.dtype or (scale.dtype if scale is not None else None)
    if dtype is not None and dtype != ir.DataType.FLOAT:
        normed = tape.make("Cast", [normed], to=dtype)
    if scale is not None:
        normed = tape.make("Mul", [normed, scale])
    return tape.make("Add", [normed, shift]) if shift is not None else normed


def _base(merge: ir.Node) -> str:
    return merge.name or merge.outputs[0].name or "residual"
