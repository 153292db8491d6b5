"""The attention sublayers of one graph and of the graphs inside its nodes, in order, not yet numbered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir

from graph_passes.dataflow import Dataflow, subgraphs, walk
from graph_passes.find_cache import find_caches
from graph_passes.find_cores import find_cores
from graph_passes.find_residual import Joined, borrows, find_residual, summands
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

    A reason whose ``kind`` is set is attention by its core; whether it counts as a layer depends on its cache.
    """
    entries: dict[ir.Node, Entry] = {}
    cores: list[AttentionCore] = []
    for found in sorted(find_cores(graph, flow), key=lambda found: flow.order[found.node]):
        if isinstance(found, AttentionCore):
            cores.append(found)
        else:
            entries[found.node] = found
    sublayers, declined = _group(cores, flow)
    caches = find_caches([*sublayers, *((group, None) for group, _ in declined)], flow)
    for (group, residual), cache in zip(sublayers, caches, strict=False):
        kind = _kind(group[0], residual, cores, flow)
        entries[group[0].node] = AttentionSite(UNNUMBERED, kind, group, residual, cache)
    for (group, reason), cache in zip(declined, caches[len(sublayers) :], strict=True):
        entries[group[0].node] = dataclasses.replace(reason, kind=reason.kind or "self", cache=cache)
    for node in graph:
        inner = tuple(find_sublayers(inner, flow) for inner in subgraphs(node))
        if any(inner):
            entries[node] = Branches(node, inner) if node.op_type == "If" else _closed(node)
    return tuple(entry for _, entry in sorted(entries.items(), key=lambda pair: flow.order[pair[0]]))


def _closed(node: ir.Node) -> NoMatch:
    return NoMatch(node, f"it holds attention inside a {node.op_type}, which cannot be taken out layer by layer")


def _group(
    cores: Sequence[AttentionCore], flow: Dataflow
) -> tuple[list[tuple[tuple[AttentionCore, ...], ResidualMerge]], list[tuple[tuple[AttentionCore, ...], NoMatch]]]:
    """Find each core's residual; cores that are joined before they reach it are one sublayer."""
    # Two softmaxes that share the second product: a difference of attention maps.
    shared: dict[ir.Value, tuple[AttentionCore, ...]] = {}
    for core in cores:
        shared[core.output] = (*shared.get(core.output, ()), core)
    pending = list(shared.values())
    found: dict[ir.Node, tuple[tuple[AttentionCore, ...], ResidualMerge]] = {}
    declined: list[tuple[tuple[AttentionCore, ...], NoMatch]] = []
    while pending:
        group = pending.pop(0)
        outcome = find_residual(group, flow, cores)
        if isinstance(outcome, Joined):
            joined = {*group, *outcome.cores}
            pending = [other for other in pending if not joined.intersection(other)]
            found = {merge: entry for merge, entry in found.items() if not joined.intersection(entry[0])}
            declined = [entry for entry in declined if not joined.intersection(entry[0])]
            pending.insert(0, tuple(core for core in cores if core in joined))
        elif isinstance(outcome, NoMatch):
            declined.append((group, dataclasses.replace(outcome, node=group[0].node)))
        elif outcome.merge in found and _yields(found[outcome.merge], group[0], outcome, cores, flow):
            pending.insert(0, found.pop(outcome.merge)[0])
            found[outcome.merge] = group, outcome
        elif outcome.merge in found:
            shares = f"it shares its residual sum with other attention ({node_name(outcome.merge)})"
            declined.append(
                (group, NoMatch(group[0].node, shares, _kind(group[0], outcome, cores, flow), residual=outcome))
            )
        else:
            found[outcome.merge] = group, outcome
    return list(found.values()), declined


def _yields(
    held: tuple[tuple[AttentionCore, ...], ResidualMerge],
    core: AttentionCore,
    residual: ResidualMerge,
    cores: Sequence[AttentionCore],
    flow: Dataflow,
) -> bool:
    """Whether cross-attention that holds a sum gives it up to self-attention, which layers are counted by."""
    return _kind(held[0][0], held[1], cores, flow) == "cross" and _kind(core, residual, cores, flow) == "self"


def _kind(core: AttentionCore, residual: ResidualMerge, cores: Sequence[AttentionCore], flow: Dataflow) -> Kind:
    """Self-attention reads its keys from its own stream, or borrows those of an earlier sublayer of the same stream.

    A stream is known by where it begins, the embedding; keys that do not depend on all that it is made of come from
    elsewhere.
    """
    sources = [core.key, core.value]
    if core.key is core.query or flow.depends(sources, residual.stream) or borrows([core], cores, flow):
        return "self"
    beginning = min(walk(residual.stream, lambda value: flow.varying(summands(value))), key=flow.place)
    return "self" if flow.roots([beginning]) <= flow.roots(sources) else "cross"
