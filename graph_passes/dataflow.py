"""Reachability in a graph: who feeds whom, what is alive. Nothing here changes a model.

``Shape`` and ``Size`` read how large a tensor is and not what it holds, so data does not flow through them. Exported
graphs take batch and sequence length from tensors inside attention, which must not count as using its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import onnx_ir as ir

SHAPE_READERS = frozenset({"Shape", "Size"})


def is_constant(value: ir.Value) -> bool:
    """Whether a value is an initializer or the output of a Constant node, possibly behind a cast or a relayout."""
    seen = 0
    while True:
        producer = value.producer()
        if producer is None:
            return value.is_initializer()
        if producer.op_type == "Constant":
            return True
        # A weight often sits behind one Transpose, Cast or DequantizeLinear; four such steps are more than any exporter
        # writes, and a bound keeps a long activation chain from being walked for every question.
        if producer.op_type not in {"Transpose", "Cast", "Identity", "DequantizeLinear", "Reshape"} or seen == 4:
            return False
        first = producer.inputs[0]
        if first is None:
            return False
        value, seen = first, seen + 1


def captured_values(node: ir.Node) -> Iterator[ir.Value]:
    """Values that a node reads: its inputs, and whatever its subgraphs (If, Loop, Scan) take from outside."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            yield from graph.outputs
            for inner in graph:
                yield from captured_values(inner)


def ancestors(values: Iterable[ir.Value]) -> set[ir.Value]:
    """Every value whose content the given values depend on, themselves included."""
    found: set[ir.Value] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        if value in found:
            continue
        found.add(value)
        producer = value.producer()
        if producer is not None and producer.op_type not in SHAPE_READERS:
            stack.extend(captured_values(producer))
    return found


def live_nodes(outputs: Iterable[ir.Value], replaced: Mapping[ir.Value, ir.Value] | None = None) -> set[ir.Node]:
    """Nodes that the outputs need, if every value in ``replaced`` were read from its replacement instead.

    This answers "what would die" before a graph is touched. Unlike :func:`ancestors` it follows shape reads, since
    a node that is only measured must still run.
    """
    replaced = replaced or {}
    found: set[ir.Node] = set()
    seen: set[ir.Value] = set()
    stack = list(outputs)
    while stack:
        value = stack.pop()
        # Neighbouring removed layers chain: kept_3 is the sum of layer 2, which is replaced by kept_2.
        while value in replaced:
            value = replaced[value]
        if value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is not None and producer not in found:
            found.add(producer)
            stack.extend(captured_values(producer))
    return found


def walk(start: ir.Value, step: Callable[[ir.Value], Iterable[ir.Value]]) -> Iterator[ir.Value]:
    """Breadth-first from ``start`` along ``step``, each value once, ``start`` first."""
    queue, seen = [start], {start}
    for value in queue:
        yield value
        for following in step(value):
            if following not in seen:
                seen.add(following)
                queue.append(following)
