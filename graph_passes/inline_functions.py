"""Put the bodies of model-local functions in place of their calls, where attention hides in them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graph_passes.dataflow import subgraphs
from graph_passes.operators import ATTENTION_OPERATORS, SOFTMAXES, operator_of


def calls_that_hide_attention(model: ir.Model) -> list[ir.Node]:
    """Calls of model-local functions, where one of the functions holds a softmax or an attention operator."""
    if not any(map(_holds_attention, model.functions.values())):
        return []
    return [node for node in model.graph if node.op_identifier() in model.functions]


class InlineAttentionFunctions(ir.passes.InPlacePass):
    """Inline every function of a model if one of them holds attention; otherwise leave the model as it is."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline, and drop the functions."""
        if not calls_that_hide_attention(model):
            return ir.passes.PassResult(model, modified=False)
        InlinePass()(model)
        return ir.passes.PassResult(model, modified=True)


def _holds_attention(graph: ir.Graph | ir.Function) -> bool:
    return any(
        operator_of(node) in SOFTMAXES
        or operator_of(node) in ATTENTION_OPERATORS
        or any(map(_holds_attention, subgraphs(node)))
        for node in graph
    )
