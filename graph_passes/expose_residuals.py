"""Make the residual stream before and after each attention sublayer an output, for measures that need data."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from graph_passes.find_attention import find_attention
from graph_passes.gate_attention import branch_with_bias
from graph_passes.operators import SKIP_NORMS, node_name, operator_of
from graph_passes.sites import AttentionSite, AttentionSites


def residual_names(site: AttentionSite) -> tuple[str, str]:
    """The names of the two outputs of a sublayer: the stream that it reads, and the stream with what it adds."""
    kind = "attention" if site.kind == "self" else "cross_attention"
    return f"{kind}.{site.layer}.before", f"{kind}.{site.layer}.after"


class ExposeResiduals(ir.passes.InPlacePass):
    """Add the outputs ``attention.{layer}.before`` and ``attention.{layer}.after``, float32, shaped like the stream.

    After minus before is what the sublayer adds. In a parallel block, where one sum takes attention and MLP at once,
    "after" is the stream with attention alone. In a post-norm block both are taken in front of the norm.
    """

    def __init__(self, found: AttentionSites | None = None) -> None:
        super().__init__()
        self._found = found

    def requires(self, model: ir.Model) -> None:
        """Every sublayer lies in the graph itself, in floating point, and the names are free.

        Raises:
            PreconditionError: the text names layer, node and reason.
        """
        outputs = {value.name for value in model.graph.outputs}
        for site in (self._found or find_attention(model)).sites:
            where = f"{site}, {node_name(site.residual.merge)}"
            if site.graph is not model.graph:
                raise ir.passes.PreconditionError(
                    f"{where}: it lies in a branch of an If, which has outputs of its own"
                )
            if site.residual.merge.op_type == "QLinearAdd":
                raise ir.passes.PreconditionError(f"{where}: the stream is kept in integers")
            if outputs.intersection(residual_names(site)):
                raise ir.passes.PreconditionError(f"{where}: the graph has an output {residual_names(site)[0]} already")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the outputs, two for each sublayer in their order."""
        found = self._found or find_attention(model)
        shapes = _inferred_shapes(model) if any(site.residual.stream.shape is None for site in found.sites) else {}
        for site in found.sites:
            # The sum is shaped like the stream; where both were left out, what can be inferred serves.
            shape = site.residual.stream.shape or shapes.get(site.residual.stream.name or "")
            for name, value in zip(residual_names(site), _before_and_after(site), strict=True):
                cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{name}/expose")
                output = cast.outputs[0]
                output.name, output.dtype = name, ir.DataType.FLOAT
                output.shape = shape.copy() if shape is not None else None
                # Not in front of the merge: its sum is exposed as well.
                model.graph.insert_after(site.residual.merge, cast)
                model.graph.outputs.append(output)
        return ir.passes.PassResult(model, modified=bool(found.sites))


def _inferred_shapes(model: ir.Model) -> Mapping[str, ir.Shape]:
    """Shapes by name, from a copy of the graph without its weights, so that the graph keeps the shapes that it states.

    A graph output must state a shape, and exporters leave most others out.
    """
    copy = model.clone()
    ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    values = (value for node in copy.graph for value in node.outputs)
    return {value.name: value.shape for value in values if value.name and value.shape is not None}


def _before_and_after(site: AttentionSite) -> tuple[ir.Value, ir.Value]:
    residual, merge = site.residual, site.residual.merge
    skip = SKIP_NORMS.get(operator_of(merge))
    plain = residual.form == "residual" and len(residual.kept) == 1
    foreign_bias = skip is not None and skip.bias < len(merge.inputs) and merge.inputs[skip.bias] is not None
    if plain and skip is None:
        return residual.kept[0], merge.outputs[0]
    if plain and skip is not None and (not foreign_bias or residual.bias_index is not None):
        merge.resize_outputs(max(len(merge.outputs), skip.sum_output + 1))
        total = merge.outputs[skip.sum_output]
        total.name = total.name or f"{merge.outputs[0].name}/sum"
        for output in merge.outputs:
            # An optional result that nobody asks for has the empty name in a file.
            output.name = output.name or ""
        return residual.kept[0], total
    before = residual.stream if residual.form == "parallel" or len(residual.kept) > 1 else residual.kept[0]
    node = ir.node("Add", [before, branch_with_bias(site)], name=f"{residual_names(site)[1]}/sum")
    node.outputs[0].name = f"{node.name}_output"
    site.graph.insert_before(merge, node)
    return before, node.outputs[0]
