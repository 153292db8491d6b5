"""What removing some sublayers would do to a graph, worked out and checked before the first edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from graph_passes.bypass_attention import check_bypass, rewiring
from graph_passes.dataflow import Dataflow, Reached, Rewired, content_values, reach, read_values
from graph_passes.find_cache import key_value_path, own_key_values
from graph_passes.move_past_length import LengthMove, plan_move
from graph_passes.operators import node_name
from graph_passes.sites import AttentionSite, AttentionSites, Kind, LengthLost, SurgeryRefused


@dataclasses.dataclass(frozen=True)
class Removal:
    """A checked removal. ``dead`` are the nodes that nothing needs any more, in graph order.

    ``leaving`` are the outputs that go: of the graph, and of the branches of an If and the If itself.
    """

    removed: tuple[AttentionSite, ...]
    kept: tuple[AttentionSite, ...]
    dead: tuple[ir.Node, ...]
    leaving: tuple[ir.Value, ...]
    moves: tuple[LengthMove, ...]


def plan_removal(
    model: ir.Model,
    found: AttentionSites,
    layers: Iterable[int],
    cross: Iterable[int] = (),
    flow: Dataflow | None = None,
    *,
    needed: Sequence[ir.Value] = (),
) -> Removal:
    """Work out and check the removal of the given layers. Layers that an earlier pruning removed are no error.

    ``needed`` are values that must stay for another reason, such as a norm that a stand-in reads.

    Raises:
        SurgeryRefused: a layer does not exist or was not matched, or its attention would stay alive for another reason
            than its sum.
    """
    flow = flow or Dataflow(model)
    wanted: dict[Kind, set[int]] = {"self": set(layers), "cross": set(cross)}
    for kind, numbers in wanted.items():
        _check_numbers(found, kind, numbers)
    removed = found.chosen(wanted["self"], wanted["cross"])
    kept = tuple(site for site in found.sites if site not in removed)
    for site in removed:
        check_bypass(site, model)
    leaving = _leaving_outputs(model, removed, flow)
    outputs = [*(value for value in model.graph.outputs if value not in leaving), *needed]
    rewired = rewiring(removed)
    before = reach(model.graph.outputs, measured=False)
    after = reach(outputs, rewired=rewired, leaving=leaving, measured=False)
    _check_gone(removed, after)
    _check_kept(removed, kept, before, after, flow)
    moves = _length_moves(model, removed, kept, outputs, leaving, rewired, before.nodes - after.nodes)
    detached = {(reader, move.gone) for move in moves for reader in move.readers}
    substitutes = [move.substitute for move in moves if move.substitute is not None]
    alive = reach([*outputs, *substitutes], rewired=rewired, leaving=leaving, detached=detached)
    everything = reach(model.graph.outputs)
    dead = _dead(flow, everything.nodes - alive.nodes, everything.nodes, removed)
    return Removal(removed, kept, dead, tuple(leaving), moves)


def _dead(
    flow: Dataflow, doomed: Collection[ir.Node], used: Collection[ir.Node], removed: Sequence[AttentionSite]
) -> tuple[ir.Node, ...]:
    """The doomed nodes, and nodes that nothing used before either but that read a result or an input which goes."""
    dead: dict[ir.Node, None] = {}
    gone = {past for site in removed for past in site.cache.past}
    for node in flow.order:
        unused = node not in used and any(value in gone or value.producer() in dead for value in read_values(node))
        if node in doomed or unused:
            dead[node] = None
    return tuple(dead)


def _check_numbers(found: AttentionSites, kind: Kind, wanted: Collection[int]) -> None:
    total = found.total(kind)
    name = {"self": "attention", "cross": "cross-attention"}[kind]
    beyond = sorted(number for number in wanted if not 0 <= number < total)
    if beyond:
        there = f"{total} {name} sublayers, 0 to {total - 1}" if total else f"no {name} sublayer"
        raise SurgeryRefused(f"layer {beyond[0]} does not exist: the graph has {there}" + _and_unmatched(found))
    for reason in found.unmatched:
        if reason.kind == kind and reason.layer in wanted:
            raise SurgeryRefused(f"layer {reason.layer} cannot be removed: {reason}")


def _leaving_outputs(model: ir.Model, removed: Sequence[AttentionSite], flow: Dataflow) -> dict[ir.Value, None]:
    """Outputs that go with the sites' caches; inside a branch of an If, the If's own output and its fellows' go too.

    Raises:
        SurgeryRefused: the branches disagree about an output, or something reads it.
    """
    leaving = {value: None for site in removed for value in (*site.cache.present, *site.cache.inner)}
    for site in removed:
        holder = flow.holder.get(site.graph)
        if holder is None:
            continue
        branches = [attr.as_graph() for attr in holder.attributes.values() if attr.type == ir.AttributeType.GRAPH]
        for result in site.cache.present:
            index = result.index()
            if result.uses() or not result.is_graph_output() or holder.graph is not model.graph or index is None:
                raise SurgeryRefused(f"{site}, {node_name(holder)}: its output {result.name} is read in the graph")
            leaving |= {branch.outputs[index]: None for branch in branches}
    return leaving


def _check_gone(removed: Sequence[AttentionSite], after: Reached) -> None:
    """Refuse when attention would survive, as it does when its probabilities are an output of the graph."""
    for site in removed:
        for core in site.cores:
            for node in core.nodes:
                if node in after.nodes:
                    raise SurgeryRefused(
                        f"{site}, {node_name(node)}: its result is also needed by {_user(node, after)}"
                    )
        for past in site.cache.past:
            if past in after.values:
                reader = next(
                    (user for user in past.consumers() if user in after.nodes and past in content_values(user)),
                    None,
                )
                if reader is not None:
                    raise SurgeryRefused(
                        f"{site}, {node_name(reader)}: it reads the cache {past.name} for something else than this "
                        "layer's attention"
                    )


def _check_kept(
    removed: Sequence[AttentionSite],
    kept: Sequence[AttentionSite],
    before: Reached,
    after: Reached,
    flow: Dataflow,
) -> None:
    """Refuse when other attention would go as well: then the sum that was found is not this sublayer's end."""
    for lender in removed:
        lent = {value for core in lender.cores for value in own_key_values(core, lender.residual, flow)}
        place = min(flow.order[core.node] for core in lender.cores)
        for site in kept:
            node = site.cores[0].node
            path = (value for core in site.cores for value in key_value_path(core, site.residual, relaid_only=True))
            if site.graph is lender.graph and flow.order[node] > place and any(value in lent for value in path):
                raise SurgeryRefused(f"{lender}, {node_name(node)}: {site} attends over its keys and values")
    for site in kept:
        for core in site.cores:
            if core.node in before.nodes and core.node not in after.nodes:
                raise SurgeryRefused(
                    f"{removed[0]}: without it nothing needs {site}, {node_name(core.node)}, which was to stay"
                )


def _user(node: ir.Node, after: Reached) -> str:
    for value in node.outputs:
        if value.is_graph_output() and value in after.values:
            return f"the graph output {value.name}"
        for user in value.consumers():
            if user in after.nodes:
                return node_name(user)
    return "the graph"


def _length_moves(
    model: ir.Model,
    removed: Sequence[AttentionSite],
    kept: Sequence[AttentionSite],
    outputs: Sequence[ir.Value],
    leaving: Collection[ir.Value],
    rewired: Rewired,
    doomed: Collection[ir.Node],
) -> tuple[LengthMove, ...]:
    """What is still measured on tensors that go, and where it can be measured instead."""
    owners = {past: site for site in removed for past in site.cache.past}

    def goes(value: ir.Value) -> bool:
        return value in owners or value.producer() in doomed

    def stays(value: ir.Value) -> bool:
        return not goes(value)

    alive = reach(outputs, rewired=rewired, leaving=leaving, stop=goes)
    cores = {node for site in removed for core in site.cores for node in core.nodes}
    inputs = [value for value in model.graph.inputs if value not in owners and not value.is_initializer()]
    moves = []
    for value in alive.values:
        if not goes(value):
            continue
        readers = [user for user in value.consumers() if user in alive.nodes and user not in doomed]
        if not readers:
            continue
        # In a graph of one floating type the stream has the type that a CastLike asks for.
        typed = [user for user in readers if user.op_type == "CastLike"]
        measuring = [user for user in readers if user not in typed]
        site = owners.get(value) or _site_of(value, removed)
        if measuring:
            try:
                moves.append(plan_move(value, measuring, site, removed, kept, inputs, stays))
            except LengthLost:
                # Measured in front of attention, as on a projection: what attention and cache have no part in can stay
                # for its shape alone.
                cone = reach([value])
                if not cone.nodes.isdisjoint(cores) or not cone.values.isdisjoint(owners):
                    raise
                continue
        if typed:
            moves.append(LengthMove(value, tuple(typed), site.residual.stream, ()))
    return tuple(sorted(moves, key=lambda move: move.gone.name or ""))


def _site_of(value: ir.Value, removed: Sequence[AttentionSite]) -> AttentionSite:
    """The removed sublayer that a value belongs to, for a message: the first that it feeds or that feeds it."""
    seen: set[ir.Value] = {value}
    stack = [value]
    cores = {node: site for site in removed for core in site.cores for node in core.nodes}
    while stack:
        for user in stack.pop().consumers():
            if user in cores:
                return cores[user]
            fresh = [output for output in user.outputs if output not in seen]
            seen.update(fresh)
            stack += fresh
    return removed[0]


def _and_unmatched(found: AttentionSites) -> str:
    if not found.unmatched:
        return ""
    return f"; {len(found.unmatched)} more resemble attention but were not matched, the first: {found.unmatched[0]}"
