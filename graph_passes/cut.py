"""Cut a piece out of a graph: what computes some values from others, as a model of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from graph_passes.dataflow import reach
from graph_passes.operators import node_name


class CutRefused(ValueError):
    """The piece would depend on a value in front of the cut. The text names the value."""


def cut(
    model: ir.Model,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    *,
    closed: Collection[ir.Value] = (),
) -> ir.Model:
    """Copy what computes ``outputs`` when ``inputs`` are fed; other inputs that it needs come after them.

    The copy shares the weights of ``model``, which is not changed. ``closed`` are values that the piece must not
    compute again, such as the residual stream in front of an earlier layer: it would be the unchanged model's.

    Raises:
        CutRefused: one of ``closed`` is needed, or an output is computed inside a subgraph.
    """
    bounded = set(inputs)
    reached = reach(outputs, stop=bounded.__contains__)
    for value in closed:
        producer = value.producer()
        if value not in bounded and value not in outputs and producer is not None and producer in reached.nodes:
            reader = next((node for node in value.consumers() if node in reached.nodes), producer)
            raise CutRefused(f"{node_name(reader)} reads {value.name}, which lies in front of the layer it belongs to")
    fed = [value for value in model.graph.inputs if value in reached.values and value not in bounded]
    try:
        graph = ir.convenience.extract(model.graph, [*inputs, *fed], list(outputs))
    except ValueError as error:
        raise CutRefused(str(error)) from error
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
