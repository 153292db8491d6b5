"""The whole surgery in its fixed order: check, bypass, move the past length, sweep, drop the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graph_passes.blocks import find_read
from graph_passes.bypass_attention import BypassAttention
from graph_passes.cache_names import KVNames, dense_names
from graph_passes.dataflow import Dataflow
from graph_passes.drop_cache_io import DropCacheIO
from graph_passes.find_attention import find_attention, record_layers
from graph_passes.move_past_length import MovePastLength
from graph_passes.removal import Removal, plan_removal
from graph_passes.sites import AttentionSites, SurgeryRefused
from graph_passes.stand_in import InsertStandIns, StandIn
from graph_passes.sweep import Sweep


def remove_attention(
    model: ir.Model,
    layers: Iterable[int],
    *,
    cross: Iterable[int] = (),
    kv_names: KVNames = "dense",
    stand_ins: Mapping[int, StandIn] | None = None,
) -> Removal:
    """Remove the attention sublayers of ``layers`` from ``model``, in place.

    Afterwards each of them adds nothing to the residual stream, or what its entry in ``stand_ins`` adds: its nodes, its
    weights and its cache inputs and outputs are gone. ``cross`` names cross-attention sublayers, which stay otherwise.
    Everything is checked before the first edit. Layers that were removed earlier are left out silently, so doing it
    twice is doing it once; empty lists leave the model untouched.

    Raises:
        SurgeryRefused: a layer does not exist or cannot be removed; the model is unchanged.
        ValueError: metadata of an earlier pruning contradicts the graph.
    """
    flow, stand_ins = Dataflow(model), dict(stand_ins or {})
    found = find_attention(model, flow)
    layers = tuple(layers)
    replaced = {site.layer: site for site in found.chosen(stand_ins)}
    unplaced = sorted(layer for layer in stand_ins if layer not in replaced or layer not in layers)
    if unplaced:
        raise SurgeryRefused(f"layer {unplaced[0]} has a stand-in but is not removed from this graph")
    reads = {layer: find_read(site, flow) for layer, site in replaced.items() if stand_ins[layer].factors}
    removal = plan_removal(model, found, layers, cross, flow, needed=list(reads.values()))
    insertion = InsertStandIns(replaced.values(), stand_ins, reads) if stand_ins else None
    return apply_removal(model, found, removal, kv_names=kv_names, insertion=insertion)


def apply_removal(
    model: ir.Model,
    found: AttentionSites,
    removal: Removal,
    *,
    kv_names: KVNames = "dense",
    insertion: InsertStandIns | None = None,
) -> Removal:
    """Carry out a removal that was planned on this very model, and return it; stand-ins are inserted first.

    Raises:
        SurgeryRefused: the cache tensors cannot be renamed; the model is unchanged.
    """
    staying = found.staying(removal.kept)
    renames = dense_names(removal.removed, staying) if kv_names == "dense" else {}
    if not removal.removed:
        return removal
    bare = tuple(site for site in removal.removed if insertion is None or not insertion.replaces(site))
    passes: list[ir.passes.PassBase] = [] if insertion is None else [insertion]
    passes += (
        BypassAttention(bare, removal.dead),
        MovePastLength(removal.moves),
        Sweep(removal.leaving, removal.dead),
        DropCacheIO(removal.removed, staying, renames),
    )
    try:
        ir.passes.Sequential(*passes)(model)
    except ir.passes.PassError as error:
        # Sequential wraps what a pass raised; the cause is what a person wants to read.
        raise SurgeryRefused(str(error.__cause__ or error)) from error
    record_layers(model, found, removal.kept)
    return removal


class RemoveAttention(ir.passes.InPlacePass):
    """The whole surgery as one pass, for use in an ``ir.passes.Sequential``; see :func:`remove_attention`."""

    def __init__(self, layers: Iterable[int], *, cross: Iterable[int] = (), kv_names: KVNames = "dense") -> None:
        super().__init__()
        self._layers = tuple(layers)
        self._cross = tuple(cross)
        self._kv_names: KVNames = kv_names

    def requires(self, model: ir.Model) -> None:
        """The layers exist and can be removed.

        Raises:
            PreconditionError: the text names the layer, the node and the reason.
        """
        flow = Dataflow(model)
        try:
            found = find_attention(model, flow)
            removal = plan_removal(model, found, self._layers, self._cross, flow)
            if self._kv_names == "dense":
                dense_names(removal.removed, found.staying(removal.kept))
        except ValueError as error:
            raise ir.passes.PreconditionError(str(error)) from error

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the sublayers."""
        removal = remove_attention(model, self._layers, cross=self._cross, kv_names=self._kv_names)
        return ir.passes.PassResult(model, modified=bool(removal.removed))
