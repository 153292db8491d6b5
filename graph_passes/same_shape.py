"""Another tensor of the same shape, for a reader that only measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from graph_passes.dataflow import walk
from graph_passes.operators import NORMS, operator_of

_ELEMENTWISE = frozenset({"Cast", "CastLike", "Identity", "Dropout", "Neg", "Sqrt", "Relu", "Tanh", "Sigmoid", "Erf"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceMax", "ReduceSumSquare"})
# From a reduced tensor to the scale of a norm.
_REDUCED_STEPS = frozenset({"Sqrt", "Add", "Mul", "Div", "Reciprocal", "Pow", "Cast", "Clip", "Max"})


def same_shape(
    gone: ir.Value,
    stays: Callable[[ir.Value], bool],
    replaced: Mapping[ir.Value, ir.Value] = MappingProxyType({}),
) -> ir.Value | None:
    """A value that stays and from which ``gone`` was computed element by element, such as the stream before a norm.

    ``replaced`` names values that an edit takes out of use, and what of the same shape is read in place of each.
    """

    def operand(value: ir.Value) -> Iterable[ir.Value]:
        return [replaced[value]] if value in replaced else _elementwise_operand(value)

    return next((value for value in walk(gone, operand) if value is not gone and stays(value)), None)


def _elementwise_operand(value: ir.Value) -> Iterable[ir.Value]:
    """The operand of a value's node that has the value's shape, where it is plain which one that is."""
    producer = value.producer()
    if producer is None or value.index() != 0:
        return ()
    if operator_of(producer) in NORMS or producer.op_type in _ELEMENTWISE:
        return [operand for operand in producer.inputs[:1] if operand is not None]
    if producer.op_type in {"Add", "Sub", "Mul", "Div"}:
        # A weight of one axis, a mean or a deviation is spread over the other operand. Of two full operands either may
        # be spread over the other.
        full = [operand for operand in producer.inputs if operand is not None and not _is_spread(operand)]
        return full if len(full) == 1 else ()
    return ()


def _is_spread(value: ir.Value) -> bool:
    if value.const_value is not None:
        return len(value.const_value.shape) <= 1
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "Constant":
        tensor = producer.attributes.get("value")
        return tensor is None or len(tensor.as_tensor().shape) <= 1
    if producer.op_type in _REDUCTIONS:
        return "keepdims" not in producer.attributes or producer.attributes["keepdims"].as_int() == 1
    if producer.op_type in _REDUCED_STEPS:
        return all(_is_spread(operand) for operand in producer.inputs if operand is not None)
    return False
