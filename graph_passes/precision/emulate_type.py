"""Compute a graph of a type that a runtime has no arithmetic for, in float32 with every result rounded to that type."""

from __future__ import annotations

import onnx_ir as ir

FLOAT = ir.DataType.FLOAT


class EmulateType(ir.passes.InPlacePass):
    """Every node reads float32 and rounds what it computes to ``dtype``; inputs and outputs of it become float32.

    Sums inside one operator are those of float32, as they are on devices that add up wide.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self._dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put casts around every node of the type."""
        graph = model.graph
        wide: dict[ir.Value, ir.Value] = {}
        for node in list(graph):
            if node.op_type == "Cast":
                result = node.outputs[0]
                if result.dtype == self._dtype and result.is_graph_output():
                    self._as_output(graph, result, result)
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == self._dtype and not value.is_graph_input():
                    if value not in wide:
                        wide[value] = self._cast(graph, node, value, FLOAT)
                    node.replace_input_with(index, wide[value])
            for result in node.outputs:
                if result.dtype == self._dtype:
                    result.dtype = FLOAT
                    readers = [(user.node, user.idx) for user in result.uses()]
                    low = self._after(graph, node, result, self._dtype)
                    for reader, index in readers:
                        reader.replace_input_with(index, low)
                    if result.is_graph_output():
                        self._as_output(graph, result, low)
            if node.op_type == "Constant" and "value" in node.attributes:
                tensor = node.attributes["value"].as_tensor()
                if tensor.dtype == self._dtype:
                    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype("float32")))
        for value in graph.inputs:
            if value.dtype == self._dtype:
                value.dtype = FLOAT
        for value in graph.outputs:
            if value.dtype == self._dtype:
                value.dtype = FLOAT
        return ir.passes.PassResult(model, modified=True)

    def _cast(self, graph: ir.Graph, before: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(to)}, name=f"{value.name}/wide")
        node.outputs[0].name, node.outputs[0].dtype = f"{value.name}/wide_output", to
        graph.insert_before(before, node)
        return node.outputs[0]

    def _after(self, graph: ir.Graph, node: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": int(to)}, name=f"{value.name}/rounded")
        cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}/rounded_output", to
        graph.insert_after(node, cast)
        return cast.outputs[0]

    def _as_output(self, graph: ir.Graph, old: ir.Value, low: ir.Value) -> None:
        """An output in float32 with the rounded numbers, under the old name."""
        name = old.name
        cast = ir.node("Cast", [low], {"to": int(FLOAT)}, name=f"{name}/out")
        cast.outputs[0].dtype, cast.outputs[0].shape = FLOAT, old.shape
        old.name, cast.outputs[0].name = f"{name}/exact", name
        graph.append(cast)
        for index, value in enumerate(graph.outputs):
            if value is old:
                graph.outputs[index] = cast.outputs[0]
