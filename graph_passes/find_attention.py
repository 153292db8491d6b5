"""The analysis that every pass starts from: a model's attention sublayers, numbered."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from graph_passes.dataflow import Dataflow
from graph_passes.find_sublayers import Branches, Entry, find_sublayers
from graph_passes.inline_functions import calls_that_hide_attention
from graph_passes.operators import ATTENTION_OPERATORS, operator_of
from graph_passes.sites import AttentionSite, AttentionSites, Kind, NoMatch

LAYERS_KEY = "gatenorm.layers"
"""Model metadata: the original number of every self-attention sublayer still in the graph, as a JSON list."""

N_LAYERS_KEY = "gatenorm.n_layers"
"""Model metadata: how many self-attention sublayers the graph had before any pruning."""

CROSS_LAYERS_KEY = "gatenorm.cross_layers"
"""Model metadata: the original number of every cross-attention sublayer still in the graph, as a JSON list."""

N_CROSS_KEY = "gatenorm.n_cross"
"""Model metadata: how many cross-attention sublayers the graph had before any pruning."""

_METADATA: dict[Kind, tuple[str, str]] = {
    "self": (LAYERS_KEY, N_LAYERS_KEY),
    "cross": (CROSS_LAYERS_KEY, N_CROSS_KEY),
}


def find_attention(model: ir.Model, flow: Dataflow | None = None) -> AttentionSites:
    """Find every attention sublayer of a model by structure; names and metadata of exporters are not consulted.

    Sublayers are numbered in the order in which the graph computes them, self-attention and cross-attention each from
    0, except in a graph that was pruned before: there the metadata keeps the original numbers. The branches of an If
    (merged decoders) are numbered alike. ``flow`` saves computing the dataflow again.

    Raises:
        ValueError: the model's pruning metadata contradicts the graph.
    """
    counters: Counter[Kind] = Counter()
    numbered = list(_number(_counted(model, find_sublayers(model.graph, flow or Dataflow(model))), counters))
    recorded = {kind: _recorded(model, kind, counters[kind]) for kind in _METADATA}
    sites: list[AttentionSite] = []
    unmatched: list[NoMatch] = []
    for entry in numbered:
        if entry.kind is not None and entry.layer is not None:
            entry = dataclasses.replace(entry, layer=recorded[entry.kind][0][entry.layer])
        if isinstance(entry, AttentionSite):
            sites.append(entry)
        else:
            unmatched.append(entry)
    for call in calls_that_hide_attention(model):
        unmatched.append(NoMatch(call, "functions of the model hold attention; run InlineAttentionFunctions first"))
    return AttentionSites(tuple(sites), tuple(unmatched), recorded["self"][1], recorded["cross"][1])


def record_layers(model: ir.Model, found: AttentionSites, kept: Iterable[AttentionSite]) -> None:
    """Write the original numbers of the kept sublayers into the model's metadata, for the next analysis.

    Attention that was found but not matched is still in the graph and stays on the list.
    """
    staying = found.staying(kept)
    for kind, (layers_key, n_key) in _METADATA.items():
        if found.total(kind):
            layers = sorted({entry.layer for entry in staying if entry.kind == kind and entry.layer is not None})
            model.metadata_props[layers_key] = json.dumps(layers)
            model.metadata_props[n_key] = str(found.total(kind))


def _counted(model: ir.Model, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Take the layer number from unmatched attention that is none of the model's layers.

    Where layers keep a cache, a pooling head or a gate is known by having none. In a graph without any cache such a one
    cannot be told from a layer and is counted. A graph that was pruned before says how many it counts.
    """
    flat = list(_flat(entries))
    doubtful = [entry for entry in flat if _doubtful(entry)]
    if not doubtful:
        return entries
    if LAYERS_KEY in model.metadata_props:
        recorded, _ = _recorded_list(model, "self")
        counts = len(recorded) == len([entry for entry in flat if entry.kind == "self"])
    else:
        counts = not any(entry.cache.past or entry.cache.present for entry in flat)
    return entries if counts else tuple(_without_number(entry) for entry in entries)


def _flat(entries: Iterable[Entry]) -> Iterator[AttentionSite | NoMatch]:
    for entry in entries:
        if isinstance(entry, Branches):
            # The branches correspond, so one stands for all.
            yield from _flat(entry.entries[0])
        else:
            yield entry


def _doubtful(entry: Entry) -> bool:
    """Whether an unmatched softmax has no cache; a fused operator is attention without doubt."""
    if not isinstance(entry, NoMatch) or entry.kind is None or entry.residual is not None:
        return False
    return operator_of(entry.node) not in ATTENTION_OPERATORS and not (entry.cache.past or entry.cache.present)


def _without_number(entry: Entry) -> Entry:
    if isinstance(entry, Branches):
        return Branches(entry.node, tuple(tuple(map(_without_number, inner)) for inner in entry.entries))
    return dataclasses.replace(entry, kind=None) if isinstance(entry, NoMatch) and _doubtful(entry) else entry


def _number(entries: Iterable[Entry], counters: Counter[Kind]) -> Iterator[AttentionSite | NoMatch]:
    for entry in entries:
        if isinstance(entry, Branches):
            yield from _number_branches(entry, counters)
        elif entry.kind is not None:
            yield dataclasses.replace(entry, layer=counters[entry.kind])
            counters[entry.kind] += 1
        else:
            yield entry


def _number_branches(branches: Branches, counters: Counter[Kind]) -> Iterator[AttentionSite | NoMatch]:
    ends = [Counter(counters) for _ in branches.entries]
    numbered = [list(_number(entries, end)) for entries, end in zip(branches.entries, ends, strict=True)]
    if any(end != ends[0] for end in ends):
        counts = " and ".join(str(sum(end.values()) - sum(counters.values())) for end in ends)
        yield NoMatch(branches.node, f"its branches hold {counts} attention sublayers, which do not correspond")
        return
    for found in numbered:
        yield from found
    counters.update(ends[0] - counters)


def _recorded(model: ir.Model, kind: Kind, found: int) -> tuple[list[int], int]:
    """The original numbers of the ``found`` sublayers of a kind, and how many there were."""
    layers_key, _ = _METADATA[kind]
    if layers_key not in model.metadata_props:
        return list(range(found)), found
    layers, n_layers = _recorded_list(model, kind)
    if len(layers) != found or sorted(set(layers)) != layers:
        raise ValueError(
            f"the model's metadata {layers_key}={model.metadata_props[layers_key]} does not describe its {found} "
            "attention sublayers; the graph was changed after it was pruned"
        )
    return layers, n_layers


def _recorded_list(model: ir.Model, kind: Kind) -> tuple[list[int], int]:
    """The metadata of a kind as it was written: the numbers, and how many sublayers there were."""
    layers_key, n_key = _METADATA[kind]
    recorded = model.metadata_props[layers_key]
    try:
        layers = json.loads(recorded)
        n_layers = int(model.metadata_props[n_key])
        valid = isinstance(layers, list) and all(type(layer) is int and 0 <= layer < n_layers for layer in layers)
    except (ValueError, KeyError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(
            f"the model's metadata {layers_key}={recorded} is damaged; the graph was changed after pruning"
        )
    return layers, n_layers
