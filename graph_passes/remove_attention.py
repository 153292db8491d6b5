"""The whole surgery in its fixed order: check, bypass, move the past length, sweep, drop the cache."""

from __future__ import annotations

import json
from collections.abc import Iterable

import onnx_ir as ir

from graph_passes.bypass_attention import BypassAttention
from graph_passes.drop_cache_io import DropCacheIO, KVNames, dense_names
from graph_passes.find_attention import LAYERS_KEY, N_LAYERS_KEY, find_attention
from graph_passes.move_past_length import MovePastLength
from graph_passes.removal import Removal, plan_removal
from graph_passes.sites import SurgeryRefused
from graph_passes.sweep import Sweep


def remove_attention(model: ir.Model, layers: Iterable[int], *, kv_names: KVNames = "dense") -> Removal:
    """Remove the attention sublayers of ``layers`` from ``model``, in place.

    Afterwards each of them adds nothing to the residual stream: its nodes, its weights and its cache inputs and outputs
    are gone. Everything is checked before the first edit. Layers that were removed earlier are left out silently, so
    doing it twice is doing it once; an empty list leaves the model untouched.

    Raises:
        SurgeryRefused: a layer does not exist or cannot be removed; the model is unchanged.
        ValueError: metadata of an earlier pruning contradicts the graph.
    """
    found = find_attention(model)
    removal = plan_removal(model, found, layers)
    if kv_names == "dense":
        dense_names(removal.removed, removal.kept)
    if not removal.removed:
        return removal
    leaving = [value for site in removal.removed for value in site.cache.present]
    passes = (
        BypassAttention(removal.removed),
        MovePastLength(removal.past_length_readers, removal.kept),
        Sweep(leaving, removal.dead),
        DropCacheIO(removal.removed, removal.kept, kv_names),
    )
    try:
        ir.passes.Sequential(*passes)(model)
    except ir.passes.PassError as error:
        # Sequential wraps what a pass raised; the cause is what a person wants to read.
        raise SurgeryRefused(str(error.__cause__ or error)) from error
    model.metadata_props[LAYERS_KEY] = json.dumps([site.layer for site in removal.kept])
    model.metadata_props[N_LAYERS_KEY] = str(found.n_layers)
    return removal
