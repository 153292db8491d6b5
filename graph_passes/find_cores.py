"""Attention cores: a softmax between two products of activations, and the cache tensors its operands come through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graph_passes.dataflow import is_constant, walk
from graph_passes.sites import AttentionCore, CacheTensors, NoMatch

PRODUCTS = frozenset({"MatMul", "Einsum", "FusedMatMul"})

# Between the scores product and the softmax: scale, mask, soft cap (Div, Tanh, Mul), casts, sinks (Concat).
_SCORE_STEPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Tanh", "Cast", "Identity", "Concat", "Clip", "Max", "Min", "Slice"}
)
# Between the softmax and the product with the values: casts, dropout, guards against rows that are masked throughout
# (IsNaN, Where), sinks cut off again (Slice), head masks (Mul).
_PROBABILITY_STEPS = frozenset(
    {"Cast", "Identity", "Dropout", "Where", "IsNaN", "Not", "Slice", "Mul", "Div", "Reshape", "Expand"}
)
# Relayout between a cache tensor and the product: only the operand that carries data is followed, never a shape
# operand. Rotary embeddings (Mul, Add, Neg, Slice, Concat) lie on this way in graphs that cache unrotated keys.
_LAYOUT_STEPS: dict[str, slice] = {
    "Transpose": slice(0, 1),
    "Reshape": slice(0, 1),
    "Expand": slice(0, 1),
    "Unsqueeze": slice(0, 1),
    "Squeeze": slice(0, 1),
    "Cast": slice(0, 1),
    "Identity": slice(0, 1),
    "Slice": slice(0, 1),
    "Gather": slice(0, 1),
    "Tile": slice(0, 1),
    "Split": slice(0, 1),
    "Neg": slice(0, 1),
    "Concat": slice(None),
    "Mul": slice(None),
    "Div": slice(None),
    "Add": slice(None),
    "Where": slice(1, None),
}


def find_cores(graph: ir.Graph) -> Iterator[AttentionCore | NoMatch]:
    """Every softmax of a graph as an attention core, or the reason why it is none; in graph order."""
    for node in graph:
        if node.op_type == "Softmax":
            yield _core_around(node)


def _core_around(softmax: ir.Node) -> AttentionCore | NoMatch:
    scores_in, probabilities = softmax.inputs[0], softmax.outputs[0]
    if scores_in is None:
        return NoMatch(softmax, "it has no input")
    scores = next(filter(_is_activation_product, walk(scores_in, _score_operands)), None)
    if scores is None:
        return NoMatch(softmax, "its input is no product of two activations")
    weighted = next(filter(_is_activation_product, walk(probabilities, _probability_results)), None)
    if weighted is None:
        return NoMatch(softmax, "its result enters no product with another activation")
    scores_node, weighted_node = _producer(scores), _producer(weighted)
    query, key = scores_node.inputs[:2]
    # The probabilities stand first in probs @ values; a graph that multiplies transposed operands puts them second.
    left, right = weighted_node.inputs[:2]
    if query is None or key is None or left is None or right is None:
        return NoMatch(softmax, "one of its products has a missing operand")
    values = right if probabilities in walk(left, _probability_operands) else left
    return AttentionCore(softmax, query, key, values, weighted)


def cache_of(core: AttentionCore) -> CacheTensors:
    """The cache tensors of a core: graph inputs that its keys and values are read from, and outputs that carry them on.

    Both tuples are empty for a graph without a cache.
    """
    past: list[ir.Value] = []
    present: list[ir.Value] = []
    for operand in (core.key, core.value):
        for value in walk(operand, _layout_operands):
            if value.is_graph_input() and not value.is_initializer() and value not in past:
                past.append(value)
            for result in walk(value, _relaid_results):
                if result.is_graph_output() and result not in present:
                    present.append(result)
    return CacheTensors(tuple(past), tuple(present))


def _producer(value: ir.Value) -> ir.Node:
    producer = value.producer()
    assert producer is not None
    return producer


def _is_activation_product(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None or producer.op_type not in PRODUCTS or len(producer.inputs) < 2:
        return False
    return all(operand is not None and not is_constant(operand) for operand in producer.inputs[:2])


def _score_operands(value: ir.Value) -> Iterable[ir.Value]:
    producer = value.producer()
    if producer is None or producer.op_type not in _SCORE_STEPS:
        return ()
    return [operand for operand in producer.inputs if operand is not None]


def _probability_operands(value: ir.Value) -> Iterable[ir.Value]:
    producer = value.producer()
    if producer is None or producer.op_type not in _PROBABILITY_STEPS:
        return ()
    return [operand for operand in producer.inputs if operand is not None]


def _probability_results(value: ir.Value) -> Iterable[ir.Value]:
    for node in value.consumers():
        if node.op_type in _PROBABILITY_STEPS or node.op_type in PRODUCTS:
            yield from node.outputs


def _layout_operands(value: ir.Value) -> Iterable[ir.Value]:
    producer = value.producer()
    if producer is None or producer.op_type not in _LAYOUT_STEPS:
        return ()
    return [operand for operand in producer.inputs[_LAYOUT_STEPS[producer.op_type]] if operand is not None]


def _relaid_results(value: ir.Value) -> Iterable[ir.Value]:
    """Forward along pure relayouts: some exporters put an Identity, Cast or Transpose before the graph output."""
    for node in value.consumers():
        if node.op_type in {"Identity", "Cast", "Transpose", "Unsqueeze", "Squeeze"} and node.inputs[0] is value:
            yield from node.outputs
