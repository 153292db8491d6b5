"""Element types of a graph's values, told from operators, also where ONNX's own shape inference knows no operator."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graph_passes.operators import MICROSOFT, operator_of

_FIXED: dict[str, ir.DataType] = {
    **dict.fromkeys(("Shape", "Size", "NonZero", "ArgMax", "ArgMin"), ir.DataType.INT64),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), ir.DataType.BOOL),
    **dict.fromkeys(("And", "Or", "Not", "Xor", "IsNaN", "IsInf"), ir.DataType.BOOL),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), ir.DataType.INT32),
}
"""Operators of ONNX whose result has one type, whatever they read."""

_OPERAND: dict[tuple[str, str], int] = {
    ("", "Where"): 1,
    ("", "CastLike"): 1,
    ("", "DequantizeLinear"): 1,
    ("", "QuantizeLinear"): 2,
    ("", "OneHot"): 2,
    ("", "QLinearMatMul"): 7,
    (MICROSOFT, "EmbedLayerNormalization"): 2,
    (MICROSOFT, "GatherBlockQuantized"): 2,
    (MICROSOFT, "MatMulIntegerToFloat"): 2,
    (MICROSOFT, "DequantizeLinear"): 1,
    (MICROSOFT, "QuantizeLinear"): 2,
    (MICROSOFT, "DynamicQuantizeMatMul"): 0,
}
"""The operand whose type the results have, where that is not the first."""

_ATTRIBUTES: dict[str, str] = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomUniform": "dtype"}
_SECOND_RESULT: dict[str, ir.DataType] = {
    "TopK": ir.DataType.INT64,
    "Dropout": ir.DataType.BOOL,
    "EmbedLayerNormalization": ir.DataType.INT32,
}


def type_of_result(node: ir.Node, index: int = 0) -> ir.DataType | None:
    """The type of a node's result as its operator and the types of its operands tell; None where they do not."""
    domain, op_type = operator_of(node)
    if op_type in _ATTRIBUTES and _ATTRIBUTES[op_type] in node.attributes:
        return ir.DataType(node.attributes[_ATTRIBUTES[op_type]].as_int())
    if not domain and op_type in _FIXED:
        return _FIXED[op_type]
    if index == 1 and op_type in _SECOND_RESULT:
        return _SECOND_RESULT[op_type]
    if op_type == "Constant":
        return _type_of_constant(node)
    if op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        return filled.as_tensor().dtype if filled is not None else ir.DataType.FLOAT
    for name in ("output_dtype",):
        if name in node.attributes and node.attributes[name].as_int():
            return ir.DataType(node.attributes[name].as_int())
    if op_type in {"If", "Loop", "Scan"}:
        return None
    place = _OPERAND.get((domain, op_type), 0)
    operand = node.inputs[place] if place < len(node.inputs) else None
    if operand is None and op_type == "QuantizeLinear":
        return ir.DataType.UINT8
    return operand.dtype if operand is not None else None


def set_element_types(model: ir.Model) -> None:
    """Give every value without a type the one that its node tells. Nodes must be in topological order.

    Results of an If have the types of its branches' outputs.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.dtype is None and value.const_value is not None:
                value.dtype = value.const_value.dtype
    for node in _in_order(model.graph):
        for index, result in enumerate(node.outputs):
            if result.dtype is None:
                found = _of_branch(node, index) if node.op_type == "If" else type_of_result(node, index)
                if found is not None:
                    result.dtype = found


def _in_order(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes with those inside a node before it."""
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _in_order(attribute.as_graph())
        yield node


def _of_branch(node: ir.Node, index: int) -> ir.DataType | None:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and index < len(attribute.as_graph().outputs):
            found = attribute.as_graph().outputs[index].dtype
            if found is not None:
                return found
    return None


def _type_of_constant(node: ir.Node) -> ir.DataType | None:
    names = {"value_float": ir.DataType.FLOAT, "value_floats": ir.DataType.FLOAT}
    names |= {"value_int": ir.DataType.INT64, "value_ints": ir.DataType.INT64}
    for name, dtype in names.items():
        if name in node.attributes:
            return dtype
    tensor = node.attributes.get("value")
    return tensor.as_tensor().dtype if tensor is not None else None
