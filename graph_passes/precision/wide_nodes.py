"""Which nodes of a graph must compute in float32 when the rest is in half precision, by structure and not by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from graph_passes.dataflow import walk
from graph_passes.operators import operator_of

# These add up, or leave the range of half precision where their operand is well within it.
_ALWAYS = frozenset(
    {
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization"),
        *("InstanceNormalization", "BatchNormalization", "MeanVarianceNormalization", "LpNormalization", "LRN"),
        *("Softmax", "LogSoftmax", "Hardmax", "Exp", "Log", "Pow", "Softplus", "CumSum", "Range", "Resize", "Upsample"),
        *("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"),
        *("ReduceProd", "Sin", "Cos", "Tan", "NonMaxSuppression", "RoiAlign", "GridSample", "STFT", "DFT", "Det"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "LSTM", "GRU", "RNN"),
    }
)
# From the scores to their product, and in a mask before it is added to them.
_SCORE_STEPS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Where", "Tanh", "Cast", "CastLike", "Identity", "Clip", "Max", "Min", "Neg"),
        *("Concat", "Slice", "Reshape", "Expand", "Transpose", "Unsqueeze", "Squeeze", "Sum", "Trilu", "Tile"),
        *("ConstantOfShape", "Range", "Abs", "Sqrt", "Pow", "Floor", "Mod", "Log"),
    }
)
# From an output to its product: the scale and the soft cap of logits. A sum may be the residual stream.
_OUTPUT_STEPS = frozenset({"Mul", "Div", "Tanh", "Identity", "Cast", "Reshape", "Squeeze", "Slice", "Clip", "Sigmoid"})
_SQUARES = frozenset({"Mul", "Pow", "Sub", "Abs", "Cast"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"})
_DEVIATION_STEPS = frozenset({"Add", "Sqrt", "Reciprocal", "Div", "Mul", "Pow", "Max", "Clip", "Sub", "Cast", "Neg"})


def wide_nodes(model: ir.Model, outputs: frozenset[str]) -> set[ir.Node]:
    """Nodes that compute in float32: norms with their statistics, softmax with scores and masks, angles, logits.

    ``outputs`` are the graph's outputs that stay in float32; what scales or caps one of them stays wide with it.
    """
    found: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type not in _ALWAYS:
            continue
        found.add(node)
        if node.op_type in {"Cos", "Sin"}:
            found.update(_producers(node, lambda _: True))
        elif node.op_type in {"Softmax", "LogSoftmax"}:
            found.update(_producers(node, lambda before: before.op_type in _SCORE_STEPS))
        elif node.op_type in _REDUCTIONS:
            found.update(_producers(node, lambda before: before.op_type in _SQUARES | _REDUCTIONS, _is_statistic))
            found.update(_deviation(node))
    for value in model.graph.outputs:
        producer = value.producer()
        if value.name in outputs and producer is not None and producer.op_type in _OUTPUT_STEPS:
            found.add(producer)
            found.update(_producers(producer, lambda before: before.op_type in _OUTPUT_STEPS))
    return found


def is_wide(value: ir.Value | None) -> bool:
    """Whether a value is in float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def _producers(
    node: ir.Node,
    belongs: Callable[[ir.Node], bool],
    reaches: Callable[[ir.Node], bool] = lambda _: True,
) -> Iterator[ir.Node]:
    """Nodes before ``node`` on ways of float32 values, as long as they belong."""

    def before(value: ir.Value) -> Iterator[ir.Value]:
        producer = value.producer()
        if producer is not None and belongs(producer) and reaches(producer):
            yield from (operand for operand in producer.inputs if operand is not None and is_wide(operand))

    for operand in node.inputs:
        if operand is None or not is_wide(operand):
            continue
        for value in walk(operand, before):
            producer = value.producer()
            if producer is not None and belongs(producer) and reaches(producer):
                yield producer


def _is_statistic(node: ir.Node) -> bool:
    """Whether a node before a mean belongs to the norm: a square, or a difference from another mean.

    Anything else that multiplies or subtracts, such as the block before, is not part of the norm.
    """
    if node.op_type in _REDUCTIONS or node.op_type in {"Pow", "Abs"}:
        return True
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op_type == "Sub":
        second = node.inputs[1].producer() if node.inputs[1] is not None else None
        return second is not None and second.op_type in _REDUCTIONS
    return node.op_type == "Cast" and is_wide(node.inputs[0])


def _deviation(reduction: ir.Node) -> Iterator[ir.Node]:
    """From a mean of squares to the quotient that it norms."""
    reduced = {reduction.outputs[0]}
    queue = list(reduced)
    while queue:
        for node in queue.pop().consumers():
            if node.op_type not in _DEVIATION_STEPS:
                continue
            yield node
            others = [value for value in node.inputs if value is not None and value not in reduced]
            if all(_is_constant(value) for value in others) and node.outputs[0] not in reduced:
                reduced.add(node.outputs[0])
                queue.append(node.outputs[0])


def _is_constant(value: ir.Value) -> bool:
    if value.const_value is not None and not value.is_graph_input():
        return len(value.const_value.shape) == 0 or value.const_value.size <= 1
    producer = value.producer()
    return producer is not None and operator_of(producer) == ("", "Constant")
