"""Where a bundle's manifest says something else of its graph than the graph itself."""

from __future__ import annotations

from collections.abc import Collection

from gatenorm_export.bundling.interface import GraphInterface
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS
from gatenorm_export.records import BundleGraph, BundleManifest, Decoding

_SINGLE = {"number of layers", "precision", "opset"}


def contradiction(manifest: BundleManifest, found: GraphInterface) -> str | None:
    """The first thing that the manifest says and the graph does not have; None where there is none."""
    told = manifest.graph
    assert told is not None
    decoding = manifest.decoding
    caches = decoding.caches if decoding is not None else found.caches
    kept = tuple(layer for layer in range(manifest.n_layers) if layer not in manifest.dropped)
    for what, here, there in (
        ("inputs", found.graph.inputs, told.inputs),
        ("outputs", found.graph.outputs, told.outputs),
        ("cache tensors", found.caches, caches),
        ("number of layers", found.n_layers, manifest.n_layers),
        ("kept layers", found.kept, kept),
        ("layer numbers", layer_numbers(manifest.n_layers, found.kept), manifest.layer_map),
        ("precision", found.graph.precision, told.precision),
        ("opset", found.graph.opset, told.opset),
        ("operators of com.microsoft", found.graph.contrib_operators, told.contrib_operators),
    ):
        if here != there:
            return f"the manifest's {what} {'is' if what in _SINGLE else 'are'} not the graph's"
    return _wrong_role(decoding, found.graph) if decoding is not None else None


def layer_numbers(n_layers: int, kept: Collection[int]) -> dict[int, int | None]:
    """Each layer's number among the kept ones, whatever their caches are called; None of a layer without attention."""
    new = {layer: index for index, layer in enumerate(sorted(kept))}
    return {layer: new.get(layer) for layer in range(n_layers)}


def _wrong_role(decoding: Decoding, graph: BundleGraph) -> str | None:
    """An input that a client would not feed, or feed something else, and logits that are none."""
    inputs = {spec.name for spec in graph.inputs}
    for role, name, given in (
        ("tokens", TOKENS, decoding.token_input),
        ("mask", MASK, decoding.mask_input),
        ("positions", POSITIONS, decoding.position_input),
    ):
        expected = name if name in inputs else None
        if given != expected:
            return f"the manifest's input for {role} is {given or 'none'}, and the graph's is {expected or 'none'}"
    unfed = inputs - {TOKENS, MASK, POSITIONS, *(cache.past for cache in decoding.caches)}
    if unfed:
        return f"the manifest does not tell what the graph's input {min(unfed)} is fed"
    if decoding.logits_output not in {spec.name for spec in graph.outputs}:
        return f"the manifest's logits, {decoding.logits_output}, are no output of the graph"
    return None
