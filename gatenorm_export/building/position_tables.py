"""A table of positions in a graph whose model nobody describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.building.graph_inputs import POSITIONS
from gatenorm_export.graphs import load_graph

if TYPE_CHECKING:
    import onnx_ir as ir


def table_in_graph(graph: Path) -> int | None:
    """How many positions there are in the tables that are looked up at the graph's position input itself.

    An offset is taken off (OPT looks up two rows later). None where no table is looked up like this, which does not
    mean that positions are computed: exporters also write lookups that count the mask.

    Raises:
        InputError: not an ONNX file.
    """
    found = load_graph(graph).graph
    asked = next((value for value in found.inputs if value.name == POSITIONS), None)
    rows: list[int] = []
    reached: list[tuple[ir.Value, int]] = [(asked, 0)] if asked is not None else []
    while reached:
        value, offset = reached.pop()
        for node, place in value.uses():
            if node.op_type in {"Cast", "Identity"}:
                reached.append((node.outputs[0], offset))
            elif node.op_type == "Add" and (shift := _scalar(node.inputs[1 - place])) is not None:
                reached.append((node.outputs[0], offset + shift))
            elif node.op_type == "Gather" and place == 1 and (length := _rows(node)) is not None:
                rows.append(length - offset)
    return min((length for length in rows if length > 0), default=None)


def _scalar(value: ir.Value | None) -> int | None:
    """A whole number that the graph holds."""
    tensor = _constant(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_integer():
        return None
    return int(tensor.numpy().item())


def _rows(lookup: ir.Node) -> int | None:
    """The rows of the matrix that a Gather takes rows of."""
    table, axis = _constant(lookup.inputs[0]), lookup.attributes.get("axis")
    if table is None or len(table.shape) != 2 or (axis is not None and axis.as_int() != 0):
        return None
    return int(table.shape.numpy()[0])


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    import onnx_ir as ir

    return ir.convenience.get_const_tensor(value) if value is not None else None
