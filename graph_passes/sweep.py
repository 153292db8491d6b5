"""Remove exactly what a removal left without a reader; whatever was unused before stays as it was."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


class Sweep(ir.passes.InPlacePass):
    """Remove graph outputs, dead nodes, and the weights that only they read."""

    def __init__(self, outputs: Sequence[ir.Value], dead: Sequence[ir.Node]) -> None:
        super().__init__()
        self._outputs = tuple(outputs)
        self._dead = tuple(dead)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove from the end towards the start, so that each node's readers are gone before it."""
        graph = model.graph
        for value in self._outputs:
            graph.outputs.remove(value)
        read = {value for node in self._dead for value in node.inputs if value is not None and value.is_initializer()}
        for node in reversed(self._dead):
            graph.remove(node, safe=True)
        for value in read:
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                assert value.name is not None
                del graph.initializers[value.name]
        return ir.passes.PassResult(model, modified=bool(self._outputs or self._dead))
