"""Who feeds whom, and what is alive. Nothing here changes a model.

``Shape`` and ``Size`` read how large a tensor is and not what it holds, and ``CastLike`` takes a type from its second
operand, so data does not flow through them. Exported graphs take batch and sequence length from tensors inside
attention, which must not count as using its result.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

SHAPE_READERS = frozenset({"Shape", "Size"})


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node (If, Loop, Scan), in the order of its attributes."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def read_values(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads: its inputs and the outputs of the graphs inside it.

    What those graphs capture from outside is reached through them, so that a captured value which only a dead part of
    a branch needs does not count as read.
    """
    for value in node.inputs:
        if value is not None:
            yield value
    for graph in subgraphs(node):
        yield from graph.outputs


def content_values(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads the content of: without tensors that are only measured or asked for their type."""
    if node.op_type in SHAPE_READERS:
        return
    if node.op_type == "CastLike":
        yield from (value for value in node.inputs[:1] if value is not None)
        return
    yield from read_values(node)


def walk(start: ir.Value, step: Callable[[ir.Value], Iterable[ir.Value]]) -> Iterator[ir.Value]:
    """Breadth-first from ``start`` along ``step``, each value once, ``start`` first."""
    queue, seen = deque([start]), {start}
    while queue:
        value = queue.popleft()
        yield value
        for following in step(value):
            if following not in seen:
                seen.add(following)
                queue.append(following)


def _needed(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of ``graph`` whose results a node, or a graph inside it, reads."""
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.graph is graph:
            yield producer
    for inner in subgraphs(node):
        for captured in inner:
            yield from _needed(captured, graph)


class Dataflow:
    """A model's nodes in topological order, and the values whose content depends on what a client feeds.

    Raises:
        ValueError: the graph has a cycle.
    """

    def __init__(self, model: ir.Model) -> None:
        self.order: dict[ir.Node, int] = {}
        self.holder: dict[ir.Graph, ir.Node] = {}
        """The node that a graph inside another lies in."""
        self._varying: set[ir.Value] = set()
        self._number(model.graph)

    def _number(self, graph: ir.Graph) -> None:
        self._varying.update(value for value in graph.inputs if not value.is_initializer())
        for node in graph:
            # ONNX demands topological order, but common tools (such as ONNX Runtime's float16 converter) break it.
            stack = [node]
            waiting: set[ir.Node] = set()
            while stack:
                top = stack[-1]
                missing = [needed for needed in _needed(top, graph) if needed not in self.order]
                if top in self.order or not missing:
                    stack.pop()
                    self._finish(top)
                elif top in waiting:
                    raise ValueError(f"node {top.name or '<unnamed>'} ({top.op_type}) depends on its own result")
                else:
                    waiting.add(top)
                    stack += missing

    def _finish(self, node: ir.Node) -> None:
        if node in self.order:
            return
        for inner in subgraphs(node):
            self.holder[inner] = node
            self._number(inner)
        # A node comes after everything inside it, which comes after everything that it captures.
        self.order[node] = len(self.order)
        if any(value in self._varying for value in content_values(node)):
            self._varying.update(node.outputs)

    def varying(self, values: Iterable[ir.Value | None]) -> list[ir.Value]:
        """Those of the values that vary, each once."""
        return [value for value in dict.fromkeys(values) if value is not None and value in self._varying]

    def varies(self, value: ir.Value | None) -> bool:
        """Whether the content of a value depends on what a client feeds. Weights, masks of ones and rope tables do not,
        even where their length does."""
        return value in self._varying

    def place(self, value: ir.Value) -> int:
        """The order of the node that computes a value; -1 for inputs and weights."""
        producer = value.producer()
        return -1 if producer is None else self.order[producer]

    def depends(self, values: Iterable[ir.Value], origin: ir.Value) -> bool:
        """Whether the content of any of ``values`` depends on ``origin``. Nothing before ``origin`` is visited."""
        bound = self.place(origin)
        seen: set[ir.Value] = set()
        stack = [value for value in values if value is not None]
        while stack:
            value = stack.pop()
            if value is origin:
                return True
            producer = value.producer()
            if value in seen or producer is None:
                continue
            seen.add(value)
            if self.order[producer] > bound:
                stack.extend(content_values(producer))
        return False

    def between(self, values: Iterable[ir.Value], origin: ir.Value) -> Iterator[ir.Node]:
        """Nodes on the ways from ``origin`` to ``values``, and those beside them that come after it."""
        bound = self.place(origin)
        seen: set[ir.Value] = set()
        stack = list(values)
        while stack:
            value = stack.pop()
            producer = value.producer()
            if value in seen or value is origin or producer is None or self.order[producer] <= bound:
                continue
            seen.add(value)
            yield producer
            stack.extend(content_values(producer))

    def roots(self, values: Iterable[ir.Value]) -> set[ir.Value]:
        """The inputs of the graph, or of an inner graph, that the content of ``values`` depends on."""
        seen: set[ir.Value] = set()
        stack = list(values)
        while stack:
            value = stack.pop()
            producer = value.producer()
            if value in seen or not self.varies(value):
                continue
            seen.add(value)
            if producer is not None:
                stack.extend(content_values(producer))
        return {value for value in seen if value.producer() is None}


Rewired = Mapping[ir.Value, Sequence[ir.Value]]
"""Values that a planned edit takes out of use, and what would be read in place of each."""


@dataclasses.dataclass(frozen=True)
class Reached:
    """What is needed to compute some values: nodes, and values such as inputs and weights."""

    nodes: frozenset[ir.Node]
    values: frozenset[ir.Value]


def reach(
    outputs: Iterable[ir.Value],
    *,
    rewired: Rewired | None = None,
    leaving: Collection[ir.Value] = (),
    measured: bool = True,
    stop: Callable[[ir.Value], bool] | None = None,
    detached: Collection[tuple[ir.Node, ir.Value]] = (),
) -> Reached:
    """What ``outputs`` need, if values in ``rewired`` were replaced and outputs of inner graphs in ``leaving`` dropped.

    This answers "what would die" before a graph is touched. With ``measured`` what is only looked at by ``Shape``
    counts as needed, since it must still be computed; without, only content does. ``stop`` names values whose
    producers are not followed, ``detached`` operands of nodes that would read something else.
    """
    rewired = rewired or {}
    nodes: set[ir.Node] = set()
    seen: set[ir.Value] = set()
    stack = list(outputs)
    while stack:
        value = stack.pop()
        if value in rewired:
            # Neighbouring removed layers chain: what one keeps may be the sum of the one before.
            stack.extend(rewired[value])
            continue
        if value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None or producer in nodes or (stop is not None and stop(value)):
            continue
        nodes.add(producer)
        operands = read_values(producer) if measured else content_values(producer)
        # Of an inner graph only outputs are read in this way, and those that leave no longer are.
        stack.extend(
            operand
            for operand in operands
            if (operand not in leaving or operand in producer.inputs) and (producer, operand) not in detached
        )
    return Reached(frozenset(nodes), frozenset(seen))
