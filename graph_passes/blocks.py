"""What a repair needs to know of a layer: what its attention reads, where its sum is, and its MLP's last matrix.

Nothing here changes a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from graph_passes.dataflow import Dataflow, walk
from graph_passes.operators import (
    MICROSOFT,
    NORMS,
    PROJECTIONS,
    SKIP_NORMS,
    SUMS,
    node_name,
    operator_of,
)
from graph_passes.sites import AttentionSite, AttentionSites

# These project by themselves: their first operand is what attention reads.
_PROJECTING = frozenset({(MICROSOFT, "Attention"), (MICROSOFT, "QAttention"), (MICROSOFT, "LongformerAttention")})
# From a projection's operand back to the tensor of shape [batch, tokens, d_model] in floating point.
_RELAYOUTS = frozenset(
    {"Reshape", "Flatten", "Cast", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
)
_PLAIN = frozenset({"Identity", "Cast", "Dropout", "Reshape"})


@dataclasses.dataclass(frozen=True)
class DownProjection:
    """The last matrix of a layer's MLP: ``total = rest + scale * (hidden @ weight)``.

    ``weight`` is an initializer, [d_hidden, d_model], or [d_model, d_hidden] where ``transposed``; ``total`` is the
    residual stream behind the MLP.
    """

    node: ir.Node
    hidden: ir.Value
    weight: ir.Value
    transposed: bool
    scale: float
    total: ir.Value


@dataclasses.dataclass(frozen=True)
class Block:
    """One layer as a repair sees it.

    ``read`` is what queries, keys and values are projected from: the stream or its norm. ``after`` is the residual
    stream with attention's summand added (in a parallel block with the MLP's too); it is None where no such sum is
    found. ``down`` is the reason as text where the MLP ends in something else than one float matrix.
    """

    site: AttentionSite
    read: ir.Value
    after: ir.Value | None
    down: DownProjection | str

    @property
    def layer(self) -> int:
        """The layer's number."""
        return self.site.layer

    @property
    def stream(self) -> ir.Value:
        """The residual stream in front of the layer."""
        return self.site.residual.stream


def find_blocks(found: AttentionSites, flow: Dataflow) -> tuple[Block, ...]:
    """Describe every self-attention layer of the graph, in its order."""
    sites = [site for site in found.sites if site.kind == "self"]
    cores = {core.node for site in found.sites for core in site.cores}
    ends = [flow.order[site.cores[0].node] for site in sites[1:]] + [len(flow.order)]
    return tuple(_describe(site, end, cores, flow) for site, end in zip(sites, ends, strict=True))


def _describe(site: AttentionSite, end: int, cores: set[ir.Node], flow: Dataflow) -> Block:
    after = _stream_sum(site, end, flow)
    return Block(site, find_read(site, flow), after, _down(site, after, end, cores, flow))


def find_read(site: AttentionSite, flow: Dataflow) -> ir.Value:
    """What the queries, keys and values of a sublayer are projected from; its stream where no projection is found."""
    core = site.cores[0]
    stream = site.residual.stream
    if operator_of(core.node) in _PROJECTING:
        return _float_tensor(core.query)
    bound = flow.place(stream)

    def back(value: ir.Value) -> list[ir.Value]:
        producer = value.producer()
        if producer is None or _projected_from(producer, flow) is not None or flow.order[producer] <= bound:
            return []
        return flow.varying(producer.inputs)

    for value in walk(core.value, back):
        producer = value.producer()
        operand = _projected_from(producer, flow) if producer is not None else None
        if operand is not None and flow.depends([operand], stream):
            return _float_tensor(operand)
    return stream


def _projected_from(node: ir.Node, flow: Dataflow) -> ir.Value | None:
    """The activation that a node multiplies with a weight; None where it is no such node."""
    if operator_of(node) not in PROJECTIONS:
        return None
    varying = flow.varying(node.inputs[:2])
    return varying[0] if len(varying) == 1 else None


def _float_tensor(value: ir.Value) -> ir.Value:
    while (producer := value.producer()) is not None and producer.op_type in _RELAYOUTS:
        operand = producer.inputs[0]
        assert operand is not None
        value = operand
    return value


def _sum_output(node: ir.Node) -> ir.Value | None:
    skip = SKIP_NORMS.get(operator_of(node))
    index = 0 if skip is None else skip.sum_output
    return node.outputs[index] if index < len(node.outputs) else None


def _operands(node: ir.Node, flow: Dataflow) -> list[ir.Value]:
    """The varying summands of a sum."""
    positions = SUMS[operator_of(node)]
    chosen = list(node.inputs) if positions is None else [node.inputs[index] for index in positions]
    return flow.varying(chosen)


def _stream_sum(site: AttentionSite, end: int, flow: Dataflow) -> ir.Value | None:
    """The stream behind attention's own sum; in a parallel block behind the sum that takes the stream as well."""
    value = _sum_output(site.residual.merge)
    if site.residual.form == "residual" or value is None:
        return value
    while True:
        users = [user for user in value.consumers() if operator_of(user) in SUMS and flow.order[user] < end]
        if len(users) != 1 or (total := _sum_output(users[0])) is None:
            return None
        others = [operand for operand in _operands(users[0], flow) if operand is not value]
        if any(other is site.residual.stream for other in others):
            return total
        value = total


def _down(
    site: AttentionSite, after: ir.Value | None, end: int, cores: set[ir.Node], flow: Dataflow
) -> DownProjection | str:
    if after is None:
        return "its sum with the stream was not found"
    stream = site.residual.stream
    begin = flow.order[site.residual.merge]
    sums = [node for node, place in flow.order.items() if begin <= place < end and operator_of(node) in SUMS]
    nearest = f"no sum of the stream and a projection follows {node_name(site.residual.merge)}"
    for node in sums:
        parallel = site.residual.form == "parallel"
        total = after if parallel else _sum_output(node)
        if total is None or (node is site.residual.merge and not parallel):
            continue
        for operand in _operands(node, flow):
            if operand is site.residual.branch and node is site.residual.merge:
                continue
            others = [other for other in _operands(node, flow) if other is not operand]
            if not parallel and not any(_is_stream(other, after, flow) for other in others):
                continue
            down = _projection(operand, total, flow)
            if isinstance(down, str):
                nearest = down if flow.depends([operand], stream) else nearest
                continue
            through = set(flow.between([down.hidden], stream))
            if (
                through
                and not any(core in cores for core in flow.between([down.hidden], after))
                and not (parallel and through & cores)
            ):
                return down
    return nearest


def _is_stream(value: ir.Value, after: ir.Value, flow: Dataflow) -> bool:
    """Whether a summand is the stream behind attention, or its norm (post-norm): no projection lies in between."""
    if value is after:
        return True
    between = flow.between([value], after)
    return flow.depends([value], after) and not any(_projected_from(node, flow) is not None for node in between)


def _projection(branch: ir.Value, total: ir.Value, flow: Dataflow) -> DownProjection | str:
    """The matrix at the end of a branch, through biases, relayouts and constant factors."""
    scale, value = 1.0, branch
    while (node := value.producer()) is not None:
        operator = operator_of(node)
        if operator in {("", "MatMul"), ("", "Gemm")}:
            return _matrix(node, total, scale, flow)
        varying = flow.varying(node.inputs)
        if operator in NORMS:
            return f"{node_name(node)} norms what the MLP adds"
        if (node.op_type in _PLAIN and varying) or (node.op_type == "Add" and len(varying) == 1):
            value = varying[0]
        elif node.op_type == "Mul" and len(varying) == 1 and (factor := _scalar(node, varying[0])) is not None:
            scale *= factor
            value = varying[0]
        else:
            return f"its MLP ends in {node_name(node)}, not in one matrix"
    return "its MLP was not found"


def _matrix(node: ir.Node, total: ir.Value, scale: float, flow: Dataflow) -> DownProjection | str:
    hidden, weight = node.inputs[:2]
    if hidden is None or weight is None or not flow.varies(hidden) or flow.varies(weight):
        return f"{node_name(node)} multiplies two activations"
    transposed = False
    if node.op_type == "Gemm":
        if "transA" in node.attributes and node.attributes["transA"].as_int():
            return f"{node_name(node)} transposes its activations"
        transposed = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
        scale *= node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose" and not weight.is_graph_output():
        operand = producer.inputs[0]
        if operand is None:
            return f"{node_name(producer)} has no operand"
        weight, transposed = operand, not transposed
    tensor = weight.const_value
    if not weight.is_initializer() or tensor is None or weight.is_graph_input():
        return f"the weight of {node_name(node)} is computed (quantised, for instance); repair the float graph"
    if len(tuple(weight.consumers())) > 1:
        return f"the weight of {node_name(node)} is shared with another node"
    if tensor.shape.rank() != 2 or not tensor.dtype.is_floating_point():
        return f"the weight of {node_name(node)} is {tensor.dtype} {tensor.shape}, not one float matrix"
    return DownProjection(node, hidden, weight, transposed, scale, total)


def _scalar(node: ir.Node, varying: ir.Value) -> float | None:
    """The constant that a node multiplies with, where it is one number."""
    constants: Iterator[ir.Value] = (value for value in node.inputs if value is not None and value is not varying)
    tensor = ir.convenience.get_const_tensor(next(constants))
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None
