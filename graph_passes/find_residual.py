"""Where a sublayer's result joins the residual stream.

From the core's output the graph is swept in its own order. Whenever a single node is left through which everything
computed from attention must pass, that node is a choke point; the sublayer ends at the first choke point that adds
something which does not come from attention. The shape of the sublayer (projections, biases, norms, scale factors,
diamonds such as a decomposed norm or an unmerged LoRA branch) does not matter.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from graph_passes.dataflow import SHAPE_READERS, ancestors, is_constant
from graph_passes.sites import AttentionCore, NoMatch, ResidualMerge

# What may stand between "attention + other branch" and the residual add of a parallel block. A projection there would
# mean that the first add is inside the sublayer (a convolution of the values beside attention, say).
_BETWEEN_PARALLEL_ADDS = frozenset({"Mul", "Div", "Cast", "Identity", "Dropout", "Reshape"})


def find_residual(core: AttentionCore, order: Mapping[ir.Node, int]) -> ResidualMerge | NoMatch:
    """Find the addition that ends the sublayer around ``core``; ``order`` numbers the graph's nodes topologically."""
    stream = ancestors([core.query])
    parallel: ResidualMerge | None = None
    for node, branch in _choke_points(core.output, order):
        other = _other_operand(node, branch)
        if other is None:
            if parallel is not None and node.op_type not in _BETWEEN_PARALLEL_ADDS:
                parallel = None
            continue
        if other in stream:
            return parallel or ResidualMerge(node, other, branch, "residual")
        if parallel is None:
            parallel = ResidualMerge(node, other, branch, "parallel")
    return NoMatch(core.node, "its result is never added to the stream that it read")


def _other_operand(node: ir.Node, branch: ir.Value) -> ir.Value | None:
    """The second, non-constant summand of an addition of ``branch``; None for any other node."""
    if node.op_type != "Add" or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    other = second if first is branch else first
    if other is None or other is branch or is_constant(other):
        return None
    return other


def _choke_points(start: ir.Value, order: Mapping[ir.Node, int]) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Nodes that everything computed from ``start`` passes through, in order, each with the value it passes through.

    Ends when a value leaves the graph, since what follows no longer sees everything, or enters a subgraph.
    """
    waiting: dict[ir.Value, set[ir.Node]] = {}
    agenda: list[tuple[int, ir.Node]] = []
    queued: set[ir.Node] = set()

    def open_value(value: ir.Value) -> bool:
        if value.is_graph_output():
            return False
        consumers = {node for node in value.consumers() if node.op_type not in SHAPE_READERS}
        if not consumers.issubset(order.keys()):
            return False
        if consumers:
            waiting[value] = consumers
        for node in consumers - queued:
            queued.add(node)
            heapq.heappush(agenda, (order[node], node))
        return True

    if not open_value(start):
        return
    while agenda:
        node = heapq.heappop(agenda)[1]
        passing = [value for value in dict.fromkeys(node.inputs) if value is not None and value in waiting]
        for value in passing:
            waiting[value].discard(node)
            if not waiting[value]:
                del waiting[value]
        if not waiting and len(passing) == 1:
            yield node, passing[0]
        if not all(open_value(output) for output in node.outputs):
            return
