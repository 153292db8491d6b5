"""Attention cores: a softmax between two products of activations, or a fused attention operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graph_passes.dataflow import Dataflow, walk
from graph_passes.operators import (
    ATTENTION_OPERATORS,
    PROBABILITY_STEPS,
    PRODUCTS,
    SCORE_STEPS,
    SOFTMAXES,
    AttentionOperator,
    operator_name,
    operator_of,
)
from graph_passes.sites import AttentionCore, NoMatch


def find_cores(graph: ir.Graph, flow: Dataflow) -> Iterator[AttentionCore | NoMatch]:
    """Everything in a graph that is attention or resembles it, in graph order; graphs inside nodes are not entered."""
    for node in graph:
        operator = operator_of(node)
        if operator in SOFTMAXES:
            yield _around_softmax(node, node.inputs[SOFTMAXES[operator]], node.outputs[0], flow)
        elif operator == ("", "Exp") and (normalised := _normalised(node)) is not None:
            core = _around_softmax(node, node.inputs[0], normalised, flow)
            if isinstance(core, AttentionCore):
                yield core
        elif operator in ATTENTION_OPERATORS:
            yield _from_operator(node, ATTENTION_OPERATORS[operator])
        elif node.op_type.endswith("Attention"):
            yield NoMatch(node, f"{operator_name(node)} is an attention operator that gatenorm does not know")


def _from_operator(node: ir.Node, operands: AttentionOperator) -> AttentionCore | NoMatch:
    query, key, value = (_input(node, index) for index in (operands.query, operands.key, operands.value))
    if query is None:
        return NoMatch(node, "it has no query operand")
    if key is None and operands.key is not None and not operands.optional_key:
        return NoMatch(node, "it has no key operand")
    return AttentionCore(
        node,
        query,
        key if key is not None else query,
        value if value is not None else query,
        node.outputs[0],
        tuple(past for index in operands.past if (past := _input(node, index)) is not None),
        tuple(node.outputs[index] for index in operands.present if index < len(node.outputs)),
    )


def _normalised(exponential: ir.Node) -> ir.Value | None:
    """The probabilities of a softmax that was written out, exp(x) / sum(exp(x)); None where ``Exp`` serves another end.

    The sum may have a constant or a sink added to it, and may be guarded against zero.
    """
    powers = exponential.outputs[0]
    for node in powers.consumers():
        if node.op_type not in {"Div", "Mul"} or len(node.inputs) != 2:
            continue
        divisor = node.inputs[1] if node.inputs[0] is powers else node.inputs[0]
        for value in walk(divisor, _divisor_operands) if divisor is not None else ():
            producer = value.producer()
            if producer is not None and producer.op_type == "ReduceSum" and producer.inputs[0] is powers:
                return node.outputs[0]
    return None


def _divisor_operands(value: ir.Value) -> Iterable[ir.Value]:
    producer = value.producer()
    if producer is None or producer.op_type not in {
        "Add",
        "Cast",
        "Clip",
        "Max",
        "Identity",
        "Reciprocal",
        "Unsqueeze",
    }:
        return ()
    return [operand for operand in producer.inputs if operand is not None]


def _around_softmax(
    softmax: ir.Node, scores_in: ir.Value | None, probabilities: ir.Value, flow: Dataflow
) -> AttentionCore | NoMatch:
    if scores_in is None:
        return NoMatch(softmax, "it has no input")

    def is_product(value: ir.Value) -> bool:
        return factors(value, flow) is not None

    scores = next(filter(is_product, walk(scores_in, _score_operands)), None)
    if scores is None:
        return NoMatch(softmax, "its input is no product of two activations")
    weighted = next(filter(is_product, walk(probabilities, _probability_results)), None)
    if weighted is None:
        return NoMatch(softmax, "its result enters no product with another activation")
    scored, mixed = factors(scores, flow), factors(weighted, flow)
    assert scored is not None
    assert mixed is not None
    # The probabilities stand first in probs @ values; a graph that multiplies transposed operands puts them second.
    values = mixed[1] if probabilities in walk(mixed[0], _probability_operands) else mixed[0]
    return AttentionCore(softmax, *scored, values, weighted)


def factors(value: ir.Value, flow: Dataflow) -> tuple[ir.Value, ir.Value] | None:
    """The two factors of a product of two activations; None for any other value."""
    producer = value.producer()
    if producer is None:
        return None
    positions = PRODUCTS.get(operator_of(producer))
    if positions is None or len(producer.inputs) <= max(positions):
        return None
    left, right = (producer.inputs[index] for index in positions)
    if left is None or right is None or not flow.varies(left) or not flow.varies(right):
        return None
    return left, right


def _input(node: ir.Node, index: int | None) -> ir.Value | None:
    return node.inputs[index] if index is not None and index < len(node.inputs) else None


def _score_operands(value: ir.Value) -> Iterable[ir.Value]:
    producer = value.producer()
    if producer is None or producer.op_type not in SCORE_STEPS:
        return ()
    return [operand for operand in producer.inputs if operand is not None]


def _probability_operands(value: ir.Value) -> Iterable[ir.Value]:
    producer = value.producer()
    if producer is None or producer.op_type not in PROBABILITY_STEPS:
        return ()
    return [operand for operand in producer.inputs if operand is not None]


def _probability_results(value: ir.Value) -> Iterable[ir.Value]:
    for node in value.consumers():
        if node.op_type in PROBABILITY_STEPS or operator_of(node) in PRODUCTS:
            yield from node.outputs
