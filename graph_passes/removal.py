"""What removing some sublayers would do to a graph, worked out before the first edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graph_passes.dataflow import live_nodes
from graph_passes.move_past_length import check_movable
from graph_passes.sites import AttentionSite, AttentionSites, SurgeryRefused


@dataclasses.dataclass(frozen=True)
class Removal:
    """A checked removal. ``dead`` are the nodes that nothing needs any more, in graph order."""

    removed: tuple[AttentionSite, ...]
    kept: tuple[AttentionSite, ...]
    dead: tuple[ir.Node, ...]
    past_length_readers: tuple[ir.Node, ...]


def plan_removal(model: ir.Model, found: AttentionSites, layers: Iterable[int]) -> Removal:
    """Work out and check the removal of the given layers. Layers that an earlier pruning removed are no error.

    Raises:
        SurgeryRefused: a layer does not exist, or its attention would stay alive for another reason than its sum.
    """
    wanted = sorted(set(layers))
    beyond = [layer for layer in wanted if not 0 <= layer < found.n_layers]
    if beyond:
        raise SurgeryRefused(
            f"layer {beyond[0]} does not exist: the graph has {found.n_layers} attention sublayers, "
            f"0 to {found.n_layers - 1}" + _and_unmatched(found)
        )
    removed = tuple(site for site in found.sites if site.layer in wanted)
    kept = tuple(site for site in found.sites if site.layer not in wanted)
    graph = model.graph
    leaving = {value for site in removed for value in site.cache.present}
    outputs = [value for value in graph.outputs if value not in leaving]
    replaced = {site.residual.merge.outputs[0]: site.residual.kept for site in removed}
    alive = live_nodes(outputs, replaced)
    _check_gone(removed, alive)
    readers = _past_length_readers(removed, alive)
    for site in removed:
        for past in site.cache.past:
            if any(reader.inputs[0] is past for reader in readers):
                check_movable(graph, site, past, kept)
    before = live_nodes(graph.outputs)
    dead = tuple(node for node in graph if node in before and node not in alive)
    return Removal(removed, kept, dead, readers)


def _past_length_readers(removed: Sequence[AttentionSite], alive: set[ir.Node]) -> tuple[ir.Node, ...]:
    readers: list[ir.Node] = []
    for site in removed:
        for past in site.cache.past:
            for node in past.consumers():
                if node not in alive:
                    continue
                if node.op_type != "Shape":
                    raise SurgeryRefused(
                        f"layer {site.layer}, node {node.name or '<unnamed>'} ({node.op_type}): it reads the cache "
                        f"{past.name} for something else than this layer's attention"
                    )
                if node not in readers:
                    readers.append(node)
    return tuple(readers)


def _check_gone(removed: Sequence[AttentionSite], alive: set[ir.Node]) -> None:
    """Refuse when an attention core would survive, as it does when its probabilities are an output of the graph."""
    for site in removed:
        weighted = site.core.output.producer()
        for node in (site.core.node, weighted):
            if node in alive:
                reader = next((user for value in node.outputs for user in value.consumers() if user in alive), None)
                because = f"node {reader.name or '<unnamed>'} ({reader.op_type})" if reader else "a graph output"
                raise SurgeryRefused(
                    f"layer {site.layer}, node {node.name or '<unnamed>'} ({node.op_type}): "
                    f"its result is also needed by {because}"
                )


def _and_unmatched(found: AttentionSites) -> str:
    if not found.unmatched:
        return ""
    return f"; {len(found.unmatched)} softmax nodes were not matched, the first: {found.unmatched[0]}"
