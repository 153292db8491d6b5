"""New nodes in front of another."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


class Tape:
    """Adds nodes in front of ``before`` in the order of the calls, named ``base/OPERATOR_NUMBER``."""

    def __init__(self, before: ir.Node, base: str) -> None:
        self._before = before
        self._base = base
        self._count = 0

    def make(
        self, op_type: str, inputs: Sequence[ir.Value] = (), **attributes: int | Sequence[int] | ir.TensorProtocol
    ) -> ir.Value:
        """Add a node; its one result is returned."""
        name = f"{self._base}/{op_type}_{self._count}"
        self._count += 1
        node = ir.node(op_type, inputs, attributes=attributes, name=name)
        node.outputs[0].name = f"{name}_output"
        graph = self._before.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(self._before, node)
        return node.outputs[0]
