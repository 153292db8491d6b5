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
) -> tuple[ir.Model, tuple[ir.Value, ...]]:
    """Copy what computes ``outputs`` when ``inputs`` are fed.

    ``closed`` are values that the piece must not compute again, such as the residual stream in front of earlier layers:
    it would be the unchanged model's. Exporters like to measure them, though: one whose length alone matters becomes a
    further input, to be fed with anything of its shape; these are returned beside the piece, in the order in which they
    follow ``inputs``. Inputs of the graph that the piece needs come last. The copy shares the weights of ``model``,
    which is not changed.

    Raises:
        CutRefused: the content of one of ``closed`` is needed, or an output is computed inside a subgraph.
    """
    bounded = set(inputs)
    before = set(closed) - bounded - set(outputs)
    content = reach(outputs, stop=bounded.__contains__, measured=False)
    for value in before:
        producer = value.producer()
        if producer is not None and producer in content.nodes:
            reader = next((node for node in value.consumers() if node in content.nodes), producer)
            raise CutRefused(f"{node_name(reader)} reads {value.name}, which lies in front of the layer it belongs to")
    reached = reach(outputs, stop=(bounded | before).__contains__)
    measured = tuple(value for value in closed if value in before and value in reached.values)
    fed = [value for value in model.graph.inputs if value in reached.values and value not in bounded]
    try:
        graph = ir.convenience.extract(model.graph, [*inputs, *dict.fromkeys(measured), *fed], list(outputs))
    except ValueError as error:
        raise CutRefused(str(error)) from error
    piece = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    return piece, tuple(dict.fromkeys(measured))
