"""Remove the effect of attention sublayers: ``Add(kept, branch)`` becomes ``kept``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from graph_passes.lone_norm import lone_norm
from graph_passes.operators import SKIP_NORMS, node_name, operator_of
from graph_passes.sites import AttentionSite, ResidualMerge, SurgeryRefused


def rewiring(sites: Iterable[AttentionSite]) -> dict[ir.Value, tuple[ir.Value, ...]]:
    """What each result of the sites' sums would depend on once the sublayers are bypassed."""
    rewired: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for site in sites:
        merge = site.residual.merge
        gone = {site.residual.branch_index, site.residual.bias_index}
        staying = tuple(value for index, value in enumerate(merge.inputs) if index not in gone and value is not None)
        skip = SKIP_NORMS.get(operator_of(merge))
        for index, output in enumerate(merge.outputs):
            rewired[output] = staying if skip is None or index != skip.sum_output else _summed(site.residual)
    return rewired


class BypassAttention(ir.passes.InPlacePass):
    """Rewire the residual edges around the given sites. The sublayers' nodes stay until a sweep removes them.

    ``dead`` are nodes that nothing will need afterwards; knowing them, the pass hands a norm that only they read to the
    norm that follows, so that a graph of fused norms gets no further node.
    """

    def __init__(self, sites: Sequence[AttentionSite], dead: Iterable[ir.Node] = ()) -> None:
        super().__init__()
        self._sites = tuple(sites)
        self._dead = frozenset(dead)

    def requires(self, model: ir.Model) -> None:
        """Every site belongs to this model, and its merge can be undone.

        Raises:
            PreconditionError: the text names layer, node and reason.
        """
        for site in self._sites:
            try:
                check_bypass(site, model)
            except SurgeryRefused as error:
                raise ir.passes.PreconditionError(str(error)) from error

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Let every reader of each sum read what stays of it."""
        for site in self._sites:
            for output, replacement in self._replacements(site.residual, model.opset_imports).items():
                _take_over(site.residual.merge, output, replacement)
        # Last, since the stream that a later site keeps may be what such a cast gives.
        for site in self._sites:
            if len(site.residual.kept) == 1:
                self._drop_second_casts(site.residual.kept[0])
        return ir.passes.PassResult(model, modified=bool(self._sites))

    def _replacements(self, residual: ResidualMerge, opsets: Mapping[str, int]) -> dict[ir.Value, ir.Value]:
        """New values for a merge's results; new nodes are put in front of the merge."""
        merge = residual.merge
        skip = SKIP_NORMS.get(operator_of(merge))
        if skip is None:
            return {merge.outputs[0]: _sum(merge, residual.kept)}
        total = _sum(merge, _summed(residual))
        replaced: dict[ir.Value, ir.Value] = {}
        if merge.outputs[0].is_graph_output() or not self._dead.issuperset(merge.outputs[0].consumers()):
            taken = self._take_norm(merge, total)
            replaced[merge.outputs[0]] = taken if taken is not None else lone_norm(merge, total, opsets)
        if len(merge.outputs) > skip.sum_output:
            replaced[merge.outputs[skip.sum_output]] = total
        return replaced

    def _drop_second_casts(self, kept: ir.Value) -> None:
        """Let readers of a cast read the equal cast in front of it.

        Exporters add attention to what the norm in front of it cast, and the next norm casts the sum. A model without
        that attention has one cast there, and a cast of a cast to the same type changes nothing.
        """
        first = kept.producer()
        if first is None or operator_of(first) != ("", "Cast"):
            return
        for second in kept.consumers():
            if operator_of(second) != ("", "Cast") or second in self._dead:
                continue
            same = {name: second.attributes[name] for name in second.attributes} == dict(first.attributes)
            if same and second.graph is first.graph and not second.outputs[0].is_graph_output():
                second.outputs[0].replace_all_uses_with(kept)
                _graph(second).remove(second, safe=True)

    def _take_norm(self, merge: ir.Node, total: ir.Value) -> ir.Value | None:
        """Let the fused norm that sums up ``total`` norm it for the merge's readers, where it has no other reader."""
        prior = total.producer()
        skip = SKIP_NORMS[operator_of(merge)]
        if prior is None or operator_of(prior) != operator_of(merge) or total.index() != skip.sum_output:
            return None
        normed = prior.outputs[0]
        if normed.is_graph_output() or not self._dead.issuperset(normed.consumers()) or prior in self._dead:
            return None
        places = [index for index in (skip.scale, skip.shift) if index is not None]
        wanted = {index: merge.inputs[index] if index < len(merge.inputs) else None for index in places}
        if any(new is not None and index >= len(prior.inputs) for index, new in wanted.items()):
            return None
        for index, new in wanted.items():
            if index >= len(prior.inputs):
                continue
            old = prior.inputs[index]
            prior.replace_input_with(index, new)
            if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_input():
                assert old.graph is not None
                assert old.name is not None
                del old.graph.initializers[old.name]
        prior.attributes.pop("epsilon", None)
        if "epsilon" in merge.attributes:
            prior.attributes.add(merge.attributes["epsilon"])
        normed.shape = merge.outputs[0].shape
        return normed


def check_bypass(site: AttentionSite, model: ir.Model) -> None:
    """Ask before the first edit whether a site's sum can be undone.

    Raises:
        SurgeryRefused: it cannot; the text names layer, node and reason.
    """
    merge, total = site.residual.merge, site.residual.merge.outputs[0]
    where = f"{site}, {node_name(merge)}"
    if merge.graph is None or merge.graph not in set(model.graphs()):
        raise SurgeryRefused(f"{where}: the site belongs to another model; run find_attention on this one")
    if merge.op_type == "QLinearAdd":
        raise SurgeryRefused(
            f"{where}: the residual stream is added in integers, whose scale attention decides as well; "
            "quantise in QDQ format"
        )
    if operator_of(merge) in SKIP_NORMS:
        for index in (1, 2):
            if index < len(merge.outputs) and (merge.outputs[index].uses() or merge.outputs[index].is_graph_output()):
                raise SurgeryRefused(f"{where}: its mean or deviation is used, which a lone norm does not give")
        return
    for kept in site.residual.kept:
        if kept.dtype is not None and total.dtype is not None and kept.dtype != total.dtype:
            raise SurgeryRefused(f"{where}: the sum is {total.dtype} but the kept stream is {kept.dtype}")
        if kept.shape is not None and total.shape is not None and kept.shape.rank() != total.shape.rank():
            raise SurgeryRefused(f"{where}: the sum broadcasts the kept stream from {kept.shape} to {total.shape}")


def _summed(residual: ResidualMerge) -> tuple[ir.Value, ...]:
    """What a Skip*LayerNormalization still adds up: the kept stream, and a bias that is not the branch's."""
    skip = SKIP_NORMS[operator_of(residual.merge)]
    inputs = residual.merge.inputs
    bias = inputs[skip.bias] if skip.bias < len(inputs) and skip.bias != residual.bias_index else None
    return residual.kept if bias is None else (*residual.kept, bias)


def _sum(merge: ir.Node, summands: Sequence[ir.Value]) -> ir.Value:
    if len(summands) == 1:
        return summands[0]
    node = ir.node("Add" if len(summands) == 2 else "Sum", summands, name=f"{_base(merge)}/kept")
    node.outputs[0].name = f"{node.name}_output"
    _graph(merge).insert_before(merge, node)
    return node.outputs[0]


def _take_over(merge: ir.Node, output: ir.Value, replacement: ir.Value) -> None:
    """Let every reader of ``output`` read ``replacement``; a graph output keeps its name, since clients ask for it."""
    if output.is_graph_output():
        graph = _graph(merge)
        identity = ir.node("Identity", [replacement], num_outputs=1, name=f"{_base(merge)}/output")
        name, identity.outputs[0].shape, identity.outputs[0].type = output.name, output.shape, output.type
        graph.insert_before(merge, identity)
        output.replace_all_uses_with(identity.outputs[0], replace_graph_outputs=True)
        output.name = f"{name}/with_attention"
        identity.outputs[0].name = name
    else:
        output.replace_all_uses_with(replacement)


def _base(merge: ir.Node) -> str:
    return merge.name or merge.outputs[0].name or "residual"


def _graph(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return graph
