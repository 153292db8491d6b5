"""Multiply what each attention sublayer adds by a number that the client feeds: one session measures any subset."""

from __future__ import annotations

import onnx_ir as ir

from graph_passes.find_attention import find_attention
from graph_passes.operators import node_name
from graph_passes.sites import AttentionSite, AttentionSites, Kind

GATE_NAMES: dict[Kind, str] = {"self": "attention_gate", "cross": "cross_attention_gate"}
"""The inputs that the pass adds: float [number of sublayers before any pruning], all ones where a client feeds none."""


class GateAttention(ir.passes.InPlacePass):
    """Add an input of one gate for each sublayer: 1 leaves it as it is, 0 computes what removing it computes.

    Gate ``i`` belongs to layer ``i`` as :func:`find_attention` numbers it. The key/value cache is untouched. A graph
    with cross-attention gets a second input for it.
    """

    def __init__(self, found: AttentionSites | None = None) -> None:
        super().__init__()
        self._found = found

    def requires(self, model: ir.Model) -> None:
        """The branches can be multiplied and the gates' names are free.

        Raises:
            PreconditionError: the text names layer, node and reason, or the name that is taken.
        """
        found = self._found or find_attention(model)
        for site in found.sites:
            if site.residual.merge.op_type == "QLinearAdd":
                raise ir.passes.PreconditionError(
                    f"{site}, {node_name(site.residual.merge)}: the branch is added in integers and cannot be scaled"
                )
        taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
        for name in GATE_NAMES.values():
            if name in taken:
                raise ir.passes.PreconditionError(f"the graph has an input or a weight {name} already: is it gated?")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the inputs and a multiplication in front of each sum."""
        found = self._found or find_attention(model)
        gates = {kind: _add_gates(model.graph, kind, found.total(kind)) for kind in GATE_NAMES if found.numbers(kind)}
        for site in found.sites:
            _multiply(site, gates[site.kind])
        return ir.passes.PassResult(model, modified=bool(found.sites))


def branch_with_bias(site: AttentionSite) -> ir.Value:
    """What the sublayer adds, as one value: a bias that its sum adds for it is added before, in a node of its own."""
    residual = site.residual
    merge, branch = residual.merge, residual.branch
    if residual.bias_index is None:
        return branch
    bias = merge.inputs[residual.bias_index]
    assert bias is not None
    node = ir.node("Add", [branch, bias], name=f"{_base(site)}/with_bias")
    node.outputs[0].name = f"{node.name}_output"
    site.graph.insert_before(merge, node)
    return node.outputs[0]


def _multiply(site: AttentionSite, gates: ir.Value) -> None:
    residual = site.residual
    branch = branch_with_bias(site)
    name = f"{_base(site)}/gate"
    index = ir.node(
        "Constant", [], attributes={"value": ir.tensor(site.layer, dtype=ir.DataType.INT64)}, name=f"{name}/index"
    )
    gate = ir.node("Gather", [gates, index.outputs[0]], attributes={"axis": 0}, name=f"{name}/number")
    alike = ir.node("CastLike", [gate.outputs[0], branch], name=f"{name}/cast")
    gated = ir.node("Mul", [branch, alike.outputs[0]], name=f"{name}/gated")
    for node in (index, gate, alike, gated):
        node.outputs[0].name = f"{node.name}_output"
    site.graph.insert_before(residual.merge, [index, gate, alike, gated])
    residual.merge.replace_input_with(residual.branch_index, gated.outputs[0])
    if residual.bias_index is not None:
        residual.merge.replace_input_with(residual.bias_index, None)


def _add_gates(graph: ir.Graph, kind: Kind, count: int) -> ir.Value:
    name = GATE_NAMES[kind]
    ones = ir.tensor([1.0] * count, dtype=ir.DataType.FLOAT, name=name)
    value = ir.Value(name=name, shape=ir.Shape([count]), type=ir.TensorType(ir.DataType.FLOAT), const_value=ones)
    # An input that is an initializer too has that as its default, and ONNX Runtime does not fold it away.
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value


def _base(site: AttentionSite) -> str:
    kind = "attention" if site.kind == "self" else "cross_attention"
    return f"{kind}_{site.layer}/{site.graph.name or 'graph'}"
