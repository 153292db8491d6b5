"""The attention sublayers of one graph and of the graphs inside its nodes, in order, not yet numbered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir

from graph_passes.dataflow import Dataflow, subgraphs
from graph_passes.find_cache import find_caches, key_value_path
from graph_passes.find_cores import find_cores
from graph_passes.find_residual import Joined, find_residual
from graph_passes.operators import node_name
from graph_passes.sites import AttentionCore, AttentionSite, Kind, NoMatch, ResidualMerge

UNNUMBERED = -1


@dataclasses.dataclass(frozen=True)
class Branches:
    """What the branches of an If hold. Only one of them runs, so their sublayers correspond one to one."""

    node: ir.Node
    entries: tuple[tuple[Entry, ...], ...]


Entry: TypeAlias = AttentionSite | NoMatch | Branches


def find_sublayers(graph: ir.Graph, flow: Dataflow) -> tuple[Entry, ...]:
    """Sites, reasons and branches in the order in which the graph computes them.

    A reason whose ``kind`` is set is attention beyond doubt and counts as a layer.
    """
    entries: dict[ir.Node, Entry] = {}
    cores: list[AttentionCore] = []
    for found in find_cores(graph, flow):
        if isinstance(found, AttentionCore):
            cores.append(found)
        else:
            entries[found.node] = found
    sublayers, declined = _group(cores, flow)
    caches = find_caches(sublayers, flow)
    for (group, residual), cache in zip(sublayers, caches, strict=True):
        kind = _kind(group, residual, cores, flow)
        entries[group[0].node] = AttentionSite(UNNUMBERED, kind, group, residual, cache)
    cached = any(cache.past or cache.present for cache in caches)
    for core, reason in declined:
        # In a graph with a cache, attention of a layer has one; a pooling head or a gate has none and takes no number.
        counts = bool(core.past or core.present) or not cached
        entries[core.node] = dataclasses.replace(reason, kind="self" if counts else None)
    for node in graph:
        inner = tuple(find_sublayers(inner, flow) for inner in subgraphs(node))
        if any(inner):
            entries[node] = Branches(node, inner) if node.op_type == "If" else _closed(node)
    return tuple(entry for _, entry in sorted(entries.items(), key=lambda pair: flow.order[pair[0]]))


def _closed(node: ir.Node) -> NoMatch:
    return NoMatch(node, f"it holds attention inside a {node.op_type}, which cannot be taken out layer by layer")


def _group(
    cores: Sequence[AttentionCore], flow: Dataflow
) -> tuple[list[tuple[tuple[AttentionCore, ...], ResidualMerge]], list[tuple[AttentionCore, NoMatch]]]:
    """Find each core's residual; cores that are joined before they reach it are one sublayer."""
    pending: list[tuple[AttentionCore, ...]] = [(core,) for core in cores]
    found: dict[ir.Node, tuple[tuple[AttentionCore, ...], ResidualMerge]] = {}
    declined: list[tuple[AttentionCore, NoMatch]] = []
    while pending:
        group = pending.pop(0)
        outcome = find_residual(group, flow, cores)
        if isinstance(outcome, Joined):
            joined = {*group, *outcome.cores}
            pending = [other for other in pending if not joined.intersection(other)]
            pending.insert(0, tuple(core for core in cores if core in joined))
        elif isinstance(outcome, NoMatch):
            declined += [(core, dataclasses.replace(outcome, node=core.node)) for core in group]
        elif outcome.merge in found and found[outcome.merge][1].branch_index == outcome.branch_index:
            # Two softmaxes that share the second product: a difference of attention maps.
            group = (*found[outcome.merge][0], *group)
            found[outcome.merge] = group, outcome
        elif outcome.merge in found:
            reason = NoMatch(
                group[0].node, f"it shares its residual sum with other attention ({node_name(outcome.merge)})"
            )
            declined += [(core, reason) for core in group]
        else:
            found[outcome.merge] = group, outcome
    return list(found.values()), declined


def _kind(
    group: Sequence[AttentionCore], residual: ResidualMerge, cores: Sequence[AttentionCore], flow: Dataflow
) -> Kind:
    """Self-attention reads its keys from its own stream, or shares them with an earlier sublayer that does."""
    core = group[0]
    sources = [core.key, core.value]
    if core.key is core.query or flow.depends(sources, residual.stream):
        return "self"
    borrowed = {value for other in cores if other not in group for value in (other.key, other.value)}
    if any(value in borrowed for value in key_value_path(core, residual)):
        return "self"
    return "cross"
