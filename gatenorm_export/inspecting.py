"""Look at an ONNX graph: every attention sublayer, how it was found and what its removal would take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.errors import InputError
from gatenorm_export.graph_checks import blames_graph
from gatenorm_export.graphs import load_graph
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import AttentionSublayer, GraphInspection, UnmatchedNode
from gatenorm_export.shape_inference import check_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionSite, AttentionSites, Dataflow


@blames_graph
def inspect_graph(graph: Path, *, progress: Progress | None = None) -> GraphInspection:
    """Find every attention sublayer of an ONNX file, and everything that resembles one and was not matched.

    No weight is read. Each sublayer's removal is planned by itself, so that what would be refused is known beforehand.

    Raises:
        MissingPartError: onnx-ir is not installed.
        InputError: not an ONNX file, or pruned by something that did not keep its metadata right.
    """
    progress = progress or Quiet()
    with progress.task("read the graph"):
        model = load_graph(graph)

    from onnx_ir.passes.common import ShapeInferencePass

    from graph_passes import Dataflow, InlineAttentionFunctions, find_attention, operator_name

    InlineAttentionFunctions()(model)
    with progress.task("infer shapes"):
        check_shapes(graph)
        # Exporters leave most shapes out; heads are read off them. What cannot be inferred stays unknown.
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    with progress.task("find attention"):
        try:
            flow = Dataflow(model)
            found = find_attention(model, flow)
        except ValueError as error:
            raise InputError(f"{graph}: {error}") from error
    with progress.task("plan each removal"):
        sublayers = tuple(_describe(model, site, found, flow) for site in found.sites)
    return GraphInspection(
        graph=str(graph),
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        n_nodes=len(flow.order),
        n_layers=found.n_layers,
        n_cross_layers=found.n_cross,
        sublayers=sublayers,
        unmatched=tuple(
            UnmatchedNode(
                node=no.node.name or no.node.outputs[0].name or "",
                operator=operator_name(no.node),
                layer=no.layer,
                reason=no.reason,
            )
            for no in found.unmatched
        ),
    )


def _describe(model: ir.Model, site: AttentionSite, found: AttentionSites, flow: Dataflow) -> AttentionSublayer:
    from graph_passes import LengthLost, SurgeryRefused, block_form, heads_of, operator_name, plan_removal, weights_of

    core, heads = site.cores[0], heads_of(site)
    weight_bytes, moved, refusal, length_lost = None, None, None, False
    try:
        numbers = {site.kind: (site.layer,)}
        removal = plan_removal(model, found, numbers.get("self", ()), numbers.get("cross", ()), flow)
        tensors = [value.const_value for value in weights_of(removal.dead)]
        weight_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        moved = ", ".join(dict.fromkeys(move.source for move in removal.moves if move.gone in site.cache.past)) or None
    except SurgeryRefused as error:
        refusal, length_lost = str(error), isinstance(error, LengthLost)
    count = f", {len(site.cores)} of them" if len(site.cores) > 1 else ""
    softmax = len(core.nodes) > 1
    return AttentionSublayer(
        layer=site.layer,
        kind=site.kind,
        branch=_branch(site, flow),
        found_by=f"structure: a softmax between two products{count}" if softmax else f"operator{count}",
        node=core.node.name or core.node.outputs[0].name or "",
        operator=operator_name(core.node),
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        past=tuple(value.name or "" for value in site.cache.past),
        present=tuple(value.name or "" for value in site.cache.present),
        residual=operator_name(site.residual.merge),
        block=block_form(site, flow),
        weight_bytes=weight_bytes,
        owns_past_length=moved is not None or length_lost,
        moves_past_length_to=moved,
        refusal=refusal,
    )


def _branch(site: AttentionSite, flow: Dataflow) -> str | None:
    holder = flow.holder.get(site.graph)
    if holder is None:
        return None
    return next(
        name
        for name, attribute in holder.attributes.items()
        if attribute.value is site.graph or site.graph in (attribute.value if isinstance(attribute.value, list) else ())
    )
