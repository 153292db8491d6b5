"""Put fitted repairs into a graph: stand-ins as tensors of its types, and new last matrices of MLPs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.errors import RefusedError
from gatenorm_export.graphs import load_graph
from gatenorm_export.repairs import Repaired

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionSites, StandIn


def stand_ins_of(model: ir.Model, found: AttentionSites, repaired: Repaired) -> dict[int, StandIn]:
    """The fitted arrays as tensors of the graph's own types, by layer."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    from graph_passes import Dataflow, StandIn, find_read

    typed = model.clone()
    ShapeInferencePass(check_type=False, strict_mode=False)(typed)
    types = {value.name: value.dtype for node in typed.graph for value in node.outputs}
    floats = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    # Where inference does not reach, most of the weights have the type of the stream.
    largest = sorted((t for t in floats if t.dtype.is_floating_point()), key=lambda tensor: tensor.nbytes)
    usual = largest[-1].dtype if largest else ir.DataType.FLOAT
    flow, stand_ins = Dataflow(model), {}
    for site in found.chosen(repaired.layers):
        repair = repaired.layers[site.layer]
        if repair.bias is not None:
            read_type = types.get(find_read(site, flow).name) or usual
            branch_type = types.get(site.residual.branch.name) or usual
            stand_ins[site.layer] = StandIn(
                ir.tensor(repair.bias.astype(branch_type.numpy())),
                tuple(ir.tensor(factor.astype(read_type.numpy())) for factor in repair.factors),
            )
    return stand_ins


def replace_downs(graph: Path, model: ir.Model, repaired: Repaired) -> None:
    """Give the MLPs their new last matrices, in the old ones' layout and type; ``graph`` is where ``model`` came from.

    Raises:
        RefusedError: a layer's MLP does not end in one float matrix.
    """
    import numpy as np
    import onnx_ir as ir

    from graph_passes import (
        Dataflow,
        DownProjection,
        InlineAttentionFunctions,
        UnfuseSkipNorms,
        find_attention,
        find_blocks,
    )

    wanted = {layer: repair.down for layer, repair in repaired.layers.items() if repair.down is not None}
    if not wanted:
        return
    # Behind a fused norm the sum is no value, so the matrices are looked up where the norms are apart.
    apart = load_graph(graph)
    InlineAttentionFunctions()(apart)
    UnfuseSkipNorms()(apart)
    flow = Dataflow(apart)
    for block in find_blocks(find_attention(apart, flow), flow):
        if block.layer in wanted:
            if not isinstance(block.down, DownProjection):
                raise RefusedError(f"{graph}: layer {block.layer} has no matrix to replace: {block.down}")
            assert block.down.weight.name is not None
            value = model.graph.initializers[block.down.weight.name]
            array = wanted[block.layer].T if block.down.transposed else wanted[block.layer]
            assert value.const_value is not None
            value.const_value = ir.tensor(np.ascontiguousarray(array, value.const_value.dtype.numpy()), name=value.name)
