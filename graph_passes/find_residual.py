"""Where a sublayer's result joins the residual stream.

From the core's output the graph is swept in its own order. Whenever a single node is left through which everything
computed from attention must pass, that node is a choke point; the sublayer ends at the first choke point that adds
something which does not come from attention. The shape of the sublayer (projections, biases, norms, scale factors,
diamonds such as a decomposed norm or an unmerged LoRA branch) does not matter.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from graph_passes.dataflow import Dataflow, content_values, walk
from graph_passes.find_cache import is_stored, key_value_path, own_key_values
from graph_passes.operators import (
    BETWEEN_PARALLEL_SUMS,
    LINEAR_STEPS,
    PRODUCTS,
    PROJECTIONS,
    PROJECTIONS_WITH_BIAS,
    SKIP_NORMS,
    SUMS,
    node_name,
    operator_of,
)
from graph_passes.sites import AttentionCore, NoMatch, ResidualMerge


@dataclasses.dataclass(frozen=True)
class Joined:
    """The result is joined with that of other cores that read the same stream: together they are one sublayer."""

    cores: tuple[AttentionCore, ...]


def find_residual(
    cores: Sequence[AttentionCore], flow: Dataflow, every: Sequence[AttentionCore]
) -> ResidualMerge | NoMatch | Joined:
    """Find the addition that ends the sublayer of ``cores``; ``every`` are all cores of the graph in its order."""
    parallel: tuple[ir.Node, ir.Value] | None = None
    for node, branch, passing in _downstream([core.output for core in cores], flow):
        if branch is None:
            if operator_of(node) in SUMS and _skips(passing, flow):
                break
            if node.op_type not in BETWEEN_PARALLEL_SUMS:
                parallel = None
            continue
        foreign = [value for value in flow.varying(node.inputs) if value is not branch]
        sums = operator_of(node) in SUMS
        if foreign and (sums or node.op_type in {"Concat", "Sub"}):
            stream = (
                next(filter(None, (_stream_in(value, cores, flow, every) for value in foreign)), None) if sums else None
            )
            if stream is not None:
                return _merge(*(parallel or (node, branch)), stream, parallel=parallel is not None)
            partners = _partners(foreign, cores, flow, every)
            if partners:
                return Joined(partners)
            if not sums:
                done = (
                    "concatenated with another branch" if node.op_type == "Concat" else "subtracted, or subtracted from"
                )
                return NoMatch(cores[0].node, f"its result is {done} at {node_name(node)}")
            if sums and parallel is None:
                parallel = node, branch
        elif not sums and node.op_type not in BETWEEN_PARALLEL_SUMS:
            parallel = None
    return NoMatch(cores[0].node, "its result is never added to the stream that it read")


def summands(value: ir.Value) -> Iterable[ir.Value]:
    """What a value adds up: one step up through sums, constant factors and relayouts."""
    producer = value.producer()
    if producer is None:
        return ()
    operator = operator_of(producer)
    if operator in SUMS:
        skip = SKIP_NORMS.get(operator)
        if skip is not None and value.index() != skip.sum_output:
            return ()
        positions = SUMS[operator]
        operands = producer.inputs if positions is None else [producer.inputs[index] for index in positions]
        return [operand for operand in operands if operand is not None]
    if operator[1] in LINEAR_STEPS:
        return [operand for operand in producer.inputs[:1] if operand is not None]
    return ()


def _stream_in(
    value: ir.Value, cores: Sequence[AttentionCore], flow: Dataflow, every: Sequence[AttentionCore]
) -> ir.Value | None:
    """The stream that the queries were computed from, where ``value`` is that stream or adds it up."""
    queries = [core.query for core in cores]
    sources = [operand for core in cores for operand in (core.key, core.value)]

    def step(summed: ir.Value) -> Iterable[ir.Value]:
        producer = summed.producer()
        if producer is not None and producer.op_type in {"Mul", "Div"}:
            # A scaled stream (DeepNorm) is the stream still; a gated one is another branch.
            varying = flow.varying(producer.inputs)
            return varying if len(varying) == 1 else ()
        return flow.varying(summands(summed))

    for candidate in walk(value, step):
        producer = candidate.producer()
        quantised = producer is not None and producer.op_type in {"QuantizeLinear", "DynamicQuantizeLinear"}
        if not quantised and flow.depends(queries, candidate):
            if flow.depends(sources, candidate):
                return candidate
            # Queries added to the result before it is projected (as in MViTv2) are no stream: keys come from the same
            # inputs but not from them. In cross-attention, and where keys are borrowed, a weight stands between the
            # stream and the queries.
            own = flow.roots([candidate]) <= flow.roots(sources) and not borrows(cores, every, flow)
            return candidate if not own and _projected(queries, candidate, flow) else None
    return None


def borrows(cores: Sequence[AttentionCore], every: Sequence[AttentionCore], flow: Dataflow) -> bool:
    """Whether keys or values are those of an earlier sublayer."""
    queries = [core.query for core in cores]
    earlier = [core for core in every if core not in cores and flow.depends(queries, core.output)]
    lent = {value for core in earlier for value in own_key_values(core, None, flow)}
    return any(value in lent for core in cores for value in key_value_path(core, None, relaid_only=True))


def _projected(queries: Sequence[ir.Value], origin: ir.Value, flow: Dataflow) -> bool:
    """Whether a product with a weight, or an operator that makes one, lies between ``origin`` and the queries."""
    for node in flow.between(queries, origin):
        varying = flow.varying(node.inputs[:2])
        # Beside the way lie other projections, such as those of further cores.
        if operator_of(node) in PROJECTIONS and len(varying) == 1 and flow.depends(varying, origin):
            return True
    return False


def _partners(
    foreign: Sequence[ir.Value], cores: Sequence[AttentionCore], flow: Dataflow, every: Sequence[AttentionCore]
) -> tuple[AttentionCore, ...]:
    """Cores that the foreign operands come from and that stand beside the given ones, neither before nor after them.

    Attention to another stream beside that to the own one is another sublayer: its keys depend on other inputs.
    """
    positions = [index for index, core in enumerate(every) if core in cores]
    queries, outputs = [core.query for core in cores], [core.output for core in cores]
    beside = []
    for core in reversed(every[: positions[0]]):
        if flow.depends(queries, core.output):
            break
        beside.append(core)
    for core in every[positions[0] :]:
        if core in cores:
            continue
        if any(flow.depends(core.operands, output) for output in outputs):
            break
        beside.append(core)
    inputs = _read_inputs(cores[0], flow)
    return tuple(core for core in beside if flow.depends(foreign, core.output) and _read_inputs(core, flow) == inputs)


def _read_inputs(core: AttentionCore, flow: Dataflow) -> set[ir.Value]:
    """The inputs that keys and values are computed from; caches, of which each core may have its own, left out."""
    return {value for value in flow.roots([core.key, core.value]) if not is_stored(value)}


def _merge(node: ir.Node, branch: ir.Value, stream: ir.Value, *, parallel: bool) -> ResidualMerge | NoMatch:
    merge = ResidualMerge(node, list(node.inputs).index(branch), "parallel" if parallel else "residual", stream)
    skip = SKIP_NORMS.get(operator_of(node))
    if skip is None or skip.bias >= len(node.inputs) or node.inputs[skip.bias] is None:
        return merge
    # Fused from (x + bias) + y: the bias is that of the projection among the summands which has none of its own.
    bare_branch, bare_kept = _is_bare_projection(branch), any(map(_is_bare_projection, merge.kept))
    if bare_branch and bare_kept and parallel:
        return NoMatch(node, "its bias may belong to attention or to the other branch")
    if not bare_branch and not bare_kept:
        return NoMatch(node, "its bias belongs to neither of its summands")
    return dataclasses.replace(merge, bias_index=skip.bias) if bare_branch else merge


def _is_bare_projection(value: ir.Value) -> bool:
    """Whether a value is, but for relayout, a product with a weight to which no bias was added."""
    producer = value.producer()
    if producer is not None and operator_of(producer) == ("", "Add"):
        # Heads may each have a projection of their own.
        return all(operand is not None and _is_bare_projection(operand) for operand in producer.inputs)
    while producer is not None and producer.op_type in LINEAR_STEPS and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    if producer is None:
        return False
    operator = operator_of(producer)
    bias = PROJECTIONS_WITH_BIAS.get(operator)
    if bias is not None:
        return bias >= len(producer.inputs) or producer.inputs[bias] is None
    return operator in PRODUCTS


def _skips(passing: Sequence[ir.Value], flow: Dataflow) -> bool:
    """Whether one summand is carried on unchanged beside another computed from it: the skip of a later sublayer."""
    return any(
        one is not other and flow.depends([other], origin)
        for one in passing
        for other in passing
        for origin in walk(one, lambda value: flow.varying(summands(value)))
    )


def _downstream(
    starts: Sequence[ir.Value], flow: Dataflow
) -> Iterator[tuple[ir.Node, ir.Value | None, Sequence[ir.Value]]]:
    """Nodes that compute from ``starts``, in order, with their operands that do, and of a choke point the one operand.

    Ends when a value leaves the graph, since what follows no longer sees everything, or enters a subgraph.
    """
    producer = starts[0].producer()
    graph = producer.graph if producer is not None else None
    waiting: dict[ir.Value, set[ir.Node]] = {}
    agenda: list[tuple[int, ir.Node]] = []
    queued: set[ir.Node] = set()

    def open_value(value: ir.Value) -> bool:
        if value.is_graph_output():
            return False
        consumers = {node for node in value.consumers() if value in content_values(node)}
        if any(node.graph is not graph for node in consumers):
            return False
        if consumers:
            waiting[value] = consumers
        for node in consumers - queued:
            queued.add(node)
            heapq.heappush(agenda, (flow.order[node], node))
        return True

    if not all(open_value(start) for start in dict.fromkeys(starts)):
        return
    while agenda:
        node = heapq.heappop(agenda)[1]
        passing = [value for value in dict.fromkeys(node.inputs) if value is not None and value in waiting]
        for value in passing:
            waiting[value].discard(node)
            if not waiting[value]:
                del waiting[value]
        yield node, passing[0] if not waiting and len(passing) == 1 else None, passing
        if not all(open_value(output) for output in node.outputs):
            return
