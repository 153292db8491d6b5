"""Remove the effect of attention sublayers: ``Add(kept, branch)`` becomes ``kept``."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.sites import AttentionSite, SurgeryRefused


class BypassAttention(ir.passes.InPlacePass):
    """Rewire the residual edges around the given sites. The sublayers' nodes stay until a sweep removes them."""

    def __init__(self, sites: Sequence[AttentionSite]) -> None:
        super().__init__()
        self._sites = tuple(sites)

    def requires(self, model: ir.Model) -> None:
        """Every site belongs to this model, and its merge changes neither type nor rank of the kept stream.

        Raises:
            PreconditionError: caused by a :class:`SurgeryRefused` that names layer, node and reason.
        """
        for site in self._sites:
            try:
                _check(site, model)
            except SurgeryRefused as error:
                raise ir.passes.PreconditionError(str(error)) from error

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Let every reader of each sum read the kept operand."""
        for site in self._sites:
            total = site.residual.merge.outputs[0]
            if total.is_graph_output():
                # The output keeps its name: clients ask for it. The sum's node gives it up to an Identity.
                identity = ir.node("Identity", [site.residual.kept], num_outputs=1)
                name, identity.outputs[0].shape, identity.outputs[0].type = total.name, total.shape, total.type
                model.graph.insert_after(site.residual.merge, identity)
                total.replace_all_uses_with(identity.outputs[0], replace_graph_outputs=True)
                total.name = f"{name}/with_attention"
                identity.outputs[0].name = name
            else:
                total.replace_all_uses_with(site.residual.kept)
        return ir.passes.PassResult(model, modified=bool(self._sites))


def _check(site: AttentionSite, model: ir.Model) -> None:
    merge, kept, total = site.residual.merge, site.residual.kept, site.residual.merge.outputs[0]
    where = f"layer {site.layer}, node {merge.name or '<unnamed>'} ({merge.op_type})"
    if merge.graph is not model.graph:
        raise SurgeryRefused(f"{where}: the site belongs to another model; run find_attention on this one")
    if kept.dtype is not None and total.dtype is not None and kept.dtype != total.dtype:
        raise SurgeryRefused(f"{where}: the sum is {total.dtype} but the kept stream is {kept.dtype}")
    if kept.shape is not None and total.shape is not None and kept.shape.rank() != total.shape.rank():
        raise SurgeryRefused(f"{where}: the sum broadcasts the kept stream from {kept.shape} to {total.shape}")
