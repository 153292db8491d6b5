"""What a person wants to know of an attention sublayer: heads, block form, weights. Shapes must have been inferred."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from graph_passes.count_heads import HeadCounter
from graph_passes.dataflow import Dataflow
from graph_passes.find_cache import key_value_path
from graph_passes.known_lengths import KnownLengths
from graph_passes.operators import ATTENTION_OPERATORS, NORMS, SKIP_NORMS, operator_of
from graph_passes.sites import AttentionCore, AttentionSite

# What a norm is made of where an exporter wrote it out: the mean of squares or a variance, and its root.
_NORM_PARTS = frozenset({"ReduceMean", "ReduceL2", "ReduceSumSquare", "LpNormalization"})
_NORM_OPERATORS = frozenset({*NORMS, *SKIP_NORMS})


@dataclasses.dataclass(frozen=True)
class Heads:
    """Query heads, key/value heads, and the size of one; None where the graph does not tell."""

    n_heads: int | None
    n_kv_heads: int | None
    head_dim: int | None


def heads_of(site: AttentionSite) -> Heads:
    """Read the heads off a sublayer's attributes and shapes."""
    core, lengths = site.cores[0], KnownLengths()
    counter = HeadCounter(site.residual.stream, lengths)
    n_heads, n_kv_heads = _attribute(core, "num_heads", "q_num_heads"), _attribute(core, "kv_num_heads")
    head_dim = _size(core)
    for past in core.past:
        if _rank(past) == 4:
            n_kv_heads = n_kv_heads or _fixed(past, 1)
    for past in (*site.cache.past, *core.past):
        if _rank(past) == 4:
            head_dim = head_dim or _fixed(past, 3)
    n_heads = n_heads or counter.at_core(core, core.query) or counter.at_core(core, core.output)
    n_heads = n_heads or counter.of_operand(core, core.query)
    if n_heads is None:
        # Keys and values stand there once for each query head, unless the product spreads them.
        found = [counter.at_core(core, value) for value in (core.key, core.value)]
        n_heads = max((heads for heads in found if heads is not None), default=None)
    if n_kv_heads is None and core.key is not core.query:
        found = [counter.of_operand(core, value) for value in (core.key, core.value)]
        n_kv_heads = max((heads for heads in found if heads is not None), default=None)
    on_the_way = [value for value in key_value_path(core, site.residual) if (lengths.rank(value) or 0) >= 4]
    spread = any((producer := value.producer()) and producer.op_type in {"Expand", "Tile"} for value in on_the_way)
    if n_heads is None and not spread:
        n_heads = n_kv_heads
    if n_kv_heads is None and not spread:
        n_kv_heads = n_heads
    if head_dim is None and n_heads and operator_of(core.node) in ATTENTION_OPERATORS:
        width = _fixed(core.output, -1) or _packed_width(core)
        if width is None and (packed := _fixed(core.query, -1)):
            # Queries, keys and values side by side, or queries alone.
            shared = n_heads + 2 * (n_kv_heads or n_heads) if core.key is core.query else n_heads
            width = packed * n_heads // shared
        head_dim = width // n_heads if width else None
    if head_dim is None and operator_of(core.node) not in ATTENTION_OPERATORS:
        head_dim = _fixed(core.query, -1) or _fixed(core.output, -1)
    return Heads(n_heads, n_kv_heads, head_dim)


def block_form(site: AttentionSite, flow: Dataflow) -> str:
    """The kind of block: pre-norm, post-norm, sandwich (a norm on either side), norm-after, parallel or plain."""
    core, residual = site.cores[0], site.residual
    if residual.form == "parallel":
        return "parallel"
    # Values, not queries: a norm of queries stands behind their projection and is part of attention. In cross-attention
    # the values come from another stream.
    operand = core.value if site.kind == "self" else core.query
    before = any(map(_is_norm, flow.between([operand], residual.stream)))
    after = any(map(_is_norm, flow.between([residual.branch], core.output)))
    if after:
        return "sandwich" if before else "norm-after"
    if before:
        return "pre-norm"
    total = residual.merge.outputs[0]
    normed = operator_of(residual.merge) in SKIP_NORMS or any(map(_is_norm, total.consumers()))
    return "post-norm" if normed else "plain"


def _is_norm(node: ir.Node) -> bool:
    return operator_of(node) in _NORM_OPERATORS or node.op_type in _NORM_PARTS


def _attribute(core: AttentionCore, *names: str) -> int | None:
    for name in names:
        if name in core.node.attributes:
            return core.node.attributes[name].as_int() or None
    return None


def _size(core: AttentionCore) -> int | None:
    """The size of a head as the result has it, [.., tokens, size], or turned where values are multiplied from left."""
    if _rank(core.output) != 4:
        return None
    product = core.output.producer()
    if product is None or product is core.node or product.op_type == "Einsum":
        return _fixed(core.output, -1)
    return _fixed(core.output, -2 if product.inputs[0] is core.value else -1)


def _packed_width(core: AttentionCore) -> int | None:
    """All query heads together, off the packed weight [d_model, 3 * width] of an operator that projects by itself."""
    weight = core.node.inputs[1] if core.key is core.query and len(core.node.inputs) > 1 else None
    packed = _fixed(weight, 1) if weight is not None and _rank(weight) == 2 else None
    return packed // 3 if packed else None


def _rank(value: ir.Value) -> int | None:
    return value.shape.rank() if value.shape is not None else None


def _fixed(value: ir.Value, axis: int) -> int | None:
    """A length where it is a number and not a name."""
    length = value.shape[axis] if value.shape is not None and value.shape.rank() else None
    return length if isinstance(length, int) else None
