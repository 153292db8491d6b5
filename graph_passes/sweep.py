"""Remove exactly what a removal left without a reader; whatever was unused before stays as it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graph_passes.dataflow import subgraphs


class Sweep(ir.passes.InPlacePass):
    """Remove outputs (of the graph, of branches and of the If that holds them), dead nodes, and their weights."""

    def __init__(self, leaving: Sequence[ir.Value], dead: Sequence[ir.Node]) -> None:
        super().__init__()
        self._leaving = set(leaving)
        self._dead = tuple(dead)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove from the end towards the start, so that each node's readers are gone before it."""
        for graph in list(model.graphs()):
            for index in reversed(range(len(graph.outputs))):
                if graph.outputs[index] in self._leaving:
                    del graph.outputs[index]
        producers = dict.fromkeys(value.producer() for value in self._leaving)
        for node in producers:
            if node is not None and next(subgraphs(node), None) is not None:
                _without_outputs(node, self._leaving)
        for value in self._leaving:
            # Kept for its shape, it must not hold a name that another layer's output may get.
            if value.producer() is not None and value.producer() not in self._dead:
                value.name = f"{value.name}/measured"
        # What lies inside a dead node is dead as well, and released with it from the values that it captures.
        for node in self._dead:
            for graph in subgraphs(node):
                graph.outputs.clear()
        weights = weights_of(self._dead)
        for node in reversed(self._dead):
            assert isinstance(node.graph, ir.Graph)
            node.graph.remove(node, safe=True)
        for value in weights:
            if not value.is_graph_output() and not value.is_graph_input():
                assert value.name is not None
                assert value.graph is not None
                del value.graph.initializers[value.name]
        return ir.passes.PassResult(model, modified=bool(self._leaving or self._dead))


def weights_of(dead: Iterable[ir.Node]) -> list[ir.Value]:
    """Initializers that only the given nodes read."""
    gone = set(dead)
    read = {value for node in gone for value in node.inputs if value is not None and value.is_initializer()}
    return [value for value in read if all(user in gone for user in value.consumers())]


def _without_outputs(node: ir.Node, leaving: set[ir.Value]) -> None:
    """Give a node that holds graphs fewer outputs; ONNX pairs them by position with the outputs of those graphs."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    kept = [value for value in node.outputs if value not in leaving]
    attributes = list(node.attributes.values())
    fewer = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        attributes,
        overload=node.overload,
        num_outputs=len(kept),
        name=node.name,
    )
    graph.insert_after(node, fewer)
    for old, new in zip(kept, fewer.outputs, strict=True):
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
    graph.remove(node, safe=True)
