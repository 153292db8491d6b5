"""The graph inputs and outputs through which an attention sublayer keeps its keys and values."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from graph_passes.dataflow import Dataflow, walk
from graph_passes.operators import ATTENTION_OPERATORS, LAYOUT_STEPS, PRESENT_STEPS, PROJECTIONS, operator_of
from graph_passes.sites import AttentionCore, CacheTensors, ResidualMerge


def find_caches(
    found: Sequence[tuple[tuple[AttentionCore, ...], ResidualMerge | None]], flow: Dataflow
) -> list[CacheTensors]:
    """The cache of each sublayer, of those without a known residual too; both tuples are empty for one without.

    A tensor that several sublayers come upon belongs to the first, from which the others borrow it. It is none at all
    where it is no cache but a table that a client feeds, such as one of rotary embeddings.
    """
    drafts = [_cache_of(cores, residual, flow) for cores, residual in found]
    # The branches of an If read the same inputs, so a tensor may be met once in each graph.
    met = Counter(
        (cores[0].node.graph, value)
        for (cores, _), draft in zip(found, drafts, strict=True)
        for value in (*draft.past, *draft.present)
    )
    taken: set[tuple[object, ir.Value]] = set()
    caches: dict[int, CacheTensors] = {}
    # In the order of computation: who stores comes before who borrows.
    for index in sorted(range(len(found)), key=lambda index: flow.order[found[index][0][0].node]):
        graph = found[index][0][0].node.graph
        parts = []
        for part in (drafts[index].past, drafts[index].present):
            shared = [value for value in part if met[graph, value] > 1]
            tables = [value for value in shared if value.is_graph_input() and not is_stored(value)]
            parts.append(tuple(value for value in part if value not in tables and (graph, value) not in taken))
            taken.update((graph, value) for value in shared)
        caches[index] = _as_clients_see_it(CacheTensors(*parts), found[index][0][0].node, flow)
    return [caches[index] for index in range(len(found))]


def _as_clients_see_it(cache: CacheTensors, node: ir.Node, flow: Dataflow) -> CacheTensors:
    """The cache with the outputs of the If in place of those of its branch, paired by position."""
    graph = node.graph
    holder = flow.holder.get(graph) if isinstance(graph, ir.Graph) else None
    if holder is None or not isinstance(graph, ir.Graph) or len(holder.outputs) != len(graph.outputs):
        return cache
    places = [list(graph.outputs).index(value) for value in cache.present]
    return CacheTensors(cache.past, tuple(holder.outputs[place] for place in places), cache.present)


def is_stored(value: ir.Value) -> bool:
    """Whether an input is carried on as a cache is: new keys are appended to it or scattered into it."""
    stores = {"Concat", "ScatterElements", "ScatterND", "TensorScatter"}
    if not value.is_graph_input() or value.is_initializer():
        return False
    return any(node.op_type in stores or operator_of(node) in ATTENTION_OPERATORS for node in value.consumers())


def key_value_path(
    core: AttentionCore, residual: ResidualMerge | None, *, relaid_only: bool = False
) -> Iterator[ir.Value]:
    """Values that a core's keys, then its values, are laid out from, nearest first; the stream ends the way.

    With ``relaid_only`` arithmetic, such as that of rotary embeddings, ends it as well.
    """
    stream = residual.stream if residual is not None else None
    operands = (core.key, core.value) if not core.past else (*core.past, core.key, core.value)

    def step(value: ir.Value) -> Iterable[ir.Value]:
        producer = value.producer()
        computed = producer is not None and producer.op_type in {"Add", "Sub", "Mul", "Div", "Neg"}
        return () if value is stream or (relaid_only and computed) else _laid_out_from(value)

    for operand in dict.fromkeys(operands):
        yield from (value for value in walk(operand, step) if value is not stream)


def own_key_values(core: AttentionCore, residual: ResidualMerge | None, flow: Dataflow) -> set[ir.Value]:
    """Values on that way that hold keys and values: projected from the stream, or stored.

    Rotary tables, which all layers share, do not: queries need them too, and they do not come from the stream.
    """
    own = set()
    for value in dict.fromkeys(key_value_path(core, residual, relaid_only=True)):
        origins = list(walk(value, _laid_out_from))
        stored = any(map(is_stored, origins))
        projected = any(map(_is_projected, origins)) and not flow.depends([core.query], value)
        if projected and residual is not None:
            projected = flow.depends([value], residual.stream)
        if stored or projected:
            own.add(value)
    return own


def _laid_out_from(value: ir.Value) -> Iterable[ir.Value]:
    producer = value.producer()
    if producer is None or producer.op_type not in LAYOUT_STEPS:
        return ()
    return [operand for operand in producer.inputs[LAYOUT_STEPS[producer.op_type]] if operand is not None]


def _is_projected(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and operator_of(producer) in PROJECTIONS


def _cache_of(cores: Sequence[AttentionCore], residual: ResidualMerge | None, flow: Dataflow) -> CacheTensors:
    past: dict[ir.Value, None] = {}
    present: dict[ir.Value, None] = {}
    for core in cores:
        relaid = functools.partial(_relaid_results, graph=core.node.graph)
        packed = core.query is core.key and not core.past and not core.present
        path = [] if packed else [*key_value_path(core, residual)]
        if core.present:
            path = [*core.present, *path]
        for value in path:
            if value.is_graph_input() and not value.is_initializer():
                past[value] = None
            # Only what a client feeds or the stream decides is a cache; a constant may well be an output as well.
            if flow.varies(value):
                present.update(dict.fromkeys(filter(ir.Value.is_graph_output, walk(value, relaid))))
    # Of the fused operators' own order key, value; a walk that starts at the keys finds them first as well.
    return CacheTensors(tuple(past), tuple(present))


def _relaid_results(value: ir.Value, graph: ir.Graph | ir.Function | None) -> Iterable[ir.Value]:
    """One step on in the same graph: another branch of an If may read the same input."""
    for node in value.consumers():
        if (
            node.graph is graph
            and node.op_type in PRESENT_STEPS
            and (node.op_type == "Concat" or node.inputs[0] is value)
        ):
            yield from node.outputs
