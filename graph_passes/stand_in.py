"""Put something cheap where an attention sublayer was: a constant, or a linear map of what attention read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from graph_passes.lone_norm import norm_and_sum
from graph_passes.operators import SKIP_NORMS, node_name, operator_of
from graph_passes.sites import AttentionSite
from graph_passes.tape import Tape


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What a removed sublayer adds instead: ``read @ factors[0] @ ... + bias``, the bias alone where there are none.

    ``bias`` is [d_model]; the factors are [d_model, d_model], or [d_model, rank] and [rank, d_model]. Their types are
    those of the graph: factors like the norm that attention reads, the bias like the stream.
    """

    bias: ir.TensorProtocol
    factors: tuple[ir.TensorProtocol, ...] = ()


class InsertStandIns(ir.passes.InPlacePass):
    """Give each sum's readers a copy of the sum that adds the stand-in; the sublayer itself stays until it is removed.

    ``reads`` are the values that queries, keys and values are projected from (:func:`find_read`), by layer; a constant
    needs none.
    """

    def __init__(
        self, sites: Iterable[AttentionSite], stand_ins: Mapping[int, StandIn], reads: Mapping[int, ir.Value]
    ) -> None:
        super().__init__()
        self._sites = tuple(sites)
        self._stand_ins = dict(stand_ins)
        self._reads = dict(reads)

    def replaces(self, site: AttentionSite) -> bool:
        """Whether a site gets a stand-in here."""
        return site in self._sites

    def requires(self, model: ir.Model) -> None:
        """Every site lies in the graph itself, and its sum is one that can be copied.

        Raises:
            PreconditionError: the text names layer, node and reason.
        """
        for site in self._sites:
            where = f"{site}, {node_name(site.residual.merge)}"
            if site.graph is not model.graph:
                raise ir.passes.PreconditionError(f"{where}: it lies in a branch of an If; remove it without repair")
            if site.residual.merge.op_type == "QLinearAdd":
                raise ir.passes.PreconditionError(f"{where}: the stream is added in integers; repair the float graph")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert them in the order of the graph."""
        moved: dict[ir.Value, ir.Value] = {}
        for site in self._sites:
            read = self._reads.get(site.layer, site.residual.stream)
            moved |= _insert(model, site, self._stand_ins[site.layer], moved.get(read, read))
        return ir.passes.PassResult(model, modified=bool(self._sites))


def _insert(model: ir.Model, site: AttentionSite, stand_in: StandIn, read: ir.Value) -> dict[ir.Value, ir.Value]:
    merge, name = site.residual.merge, f"attention_{site.layer}/stand_in"
    tape = Tape(merge, name)
    bias = _weight(model.graph, f"{name}/bias", stand_in.bias)
    value = read
    for number, factor in enumerate(stand_in.factors):
        value = tape.make("MatMul", [value, _weight(model.graph, f"{name}/weight_{number}", factor)])
    if stand_in.factors:
        if stand_in.factors[0].dtype != stand_in.bias.dtype:
            value = tape.make("Cast", [value], to=stand_in.bias.dtype)
        value = tape.make("Add", [value, bias])
    else:
        value = bias
    replaced = _sums(model, site, value, tape) if not stand_in.factors else _copied(site, value, name)
    for old, new in replaced.items():
        old_name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = f"{old_name}/with_attention", old_name
    return replaced


def _copied(site: AttentionSite, branch: ir.Value, name: str) -> dict[ir.Value, ir.Value]:
    """The sum once more, with another summand in attention's place."""
    merge, residual = site.residual.merge, site.residual
    inputs: list[ir.Value | None] = list(merge.inputs)
    inputs[residual.branch_index] = branch
    if residual.bias_index is not None:
        inputs[residual.bias_index] = None
    copy = ir.Node(
        merge.domain,
        merge.op_type,
        inputs,
        list(merge.attributes.values()),
        num_outputs=len(merge.outputs),
        name=f"{name}/{merge.op_type}",
    )
    site.graph.insert_before(merge, copy)
    return dict(zip(merge.outputs, copy.outputs, strict=True))


def _sums(model: ir.Model, site: AttentionSite, bias: ir.Value, tape: Tape) -> dict[ir.Value, ir.Value]:
    """The sum with a constant. A fused norm takes no summand of one dimension, so there the norm stands alone."""
    merge = site.residual.merge
    skip = SKIP_NORMS.get(operator_of(merge))
    summands: Sequence[ir.Value] = (*site.residual.kept, bias)
    foreign = skip is not None and skip.bias < len(merge.inputs) and site.residual.bias_index != skip.bias
    if skip is not None and foreign and (value := merge.inputs[skip.bias]) is not None:
        summands = (*summands, value)
    total = summands[0]
    for summand in summands[1:]:
        total = tape.make("Add", [total, summand])
    if skip is None:
        return {merge.outputs[0]: total}
    return norm_and_sum(merge, total, model.opset_imports)


def _weight(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
    tensor.name = name
    value.const_value = tensor
    graph.register_initializer(value)
    return value
