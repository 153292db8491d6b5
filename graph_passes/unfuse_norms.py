"""Take fused norms apart, so that the residual stream is a value of its own that a graph can be cut at."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.find_attention import find_attention
from graph_passes.gate_attention import branch_with_bias
from graph_passes.lone_norm import norm_and_sum
from graph_passes.operators import SKIP_NORMS, operator_of


class UnfuseSkipNorms(ir.passes.InPlacePass):
    """Replace every Skip*LayerNormalization by its sum and a norm. Both keep the names that the results had.

    A bias that an operator adds for attention is added to what attention adds, with which it goes when that is removed.
    This is for measuring: a runtime fuses the rest again. Operators whose mean or deviation is read are left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the nodes of the graph itself; branches of an If are not entered."""
        for site in find_attention(model).sites:
            residual = site.residual
            if site.graph is model.graph and residual.bias_index is not None:
                residual.merge.replace_input_with(residual.branch_index, branch_with_bias(site))
                residual.merge.replace_input_with(residual.bias_index, None)
        fused = [node for node in model.graph if operator_of(node) in SKIP_NORMS]
        for node in fused:
            _unfuse(model, node)
        return ir.passes.PassResult(model, modified=bool(fused))


def _unfuse(model: ir.Model, node: ir.Node) -> None:
    skip = SKIP_NORMS[operator_of(node)]
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:3]):
        return
    graph = model.graph
    total: ir.Value | None = None
    for index in (0, 1, skip.bias):
        operand = node.inputs[index] if index < len(node.inputs) else None
        if operand is None:
            continue
        if total is None:
            total = operand
            continue
        added = ir.node("Add", [total, operand], name=f"{node.name or node.outputs[0].name}/sum_{index}")
        added.outputs[0].name = f"{added.name}_output"
        added.outputs[0].type, added.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        graph.insert_before(node, added)
        total = added.outputs[0]
    assert total is not None
    for old, new in norm_and_sum(node, total, model.opset_imports).items():
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}/fused" if name else None
        new.name = name or new.name
    graph.remove(node, safe=True)
