"""The analysis that every pass starts from: a model's attention sublayers."""

from __future__ import annotations

import json

import onnx_ir as ir

from graph_passes.find_cores import cache_of, find_cores
from graph_passes.find_residual import find_residual
from graph_passes.sites import AttentionCore, AttentionSite, AttentionSites, NoMatch, ResidualMerge

LAYERS_KEY = "gatenorm.layers"
"""Model metadata: the original layer number of every attention sublayer still in the graph, as a JSON list."""

N_LAYERS_KEY = "gatenorm.n_layers"
"""Model metadata: how many attention sublayers the graph had before any pruning."""


def find_attention(model: ir.Model) -> AttentionSites:
    """Find every attention sublayer of a model by structure; names and metadata of exporters are not consulted.

    Sublayers are numbered in the order in which the graph computes them, except in a graph that was pruned before:
    there the metadata keeps the original numbers.

    Raises:
        ValueError: the model's pruning metadata contradicts the graph.
    """
    order = {node: index for index, node in enumerate(model.graph)}
    matched: list[tuple[AttentionCore, ResidualMerge]] = []
    unmatched: list[NoMatch] = []
    for core in find_cores(model.graph):
        if isinstance(core, NoMatch):
            unmatched.append(core)
            continue
        residual = find_residual(core, order)
        if isinstance(residual, NoMatch):
            unmatched.append(residual)
        else:
            matched.append((core, residual))
    layers, n_layers = _layer_numbers(model, len(matched))
    sites = tuple(
        AttentionSite(layer, core, residual, cache_of(core))
        for layer, (core, residual) in zip(layers, matched, strict=True)
    )
    return AttentionSites(sites, tuple(unmatched), n_layers)


def _layer_numbers(model: ir.Model, found: int) -> tuple[list[int], int]:
    recorded = model.metadata_props.get(LAYERS_KEY)
    if recorded is None:
        return list(range(found)), found
    try:
        layers = json.loads(recorded)
        n_layers = int(model.metadata_props[N_LAYERS_KEY])
        valid = isinstance(layers, list) and all(type(layer) is int and 0 <= layer < n_layers for layer in layers)
    except (ValueError, KeyError):
        valid = False
    if not valid or len(layers) != found or sorted(set(layers)) != layers:
        raise ValueError(
            f"the model's metadata {LAYERS_KEY}={recorded} does not describe its {found} attention sublayers; "
            "the graph was changed after it was pruned"
        )
    return layers, n_layers
