"""The query and key heads of an attention, as columns of the projections that they come from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from gatenorm_export.checkpoints.onnx_columns import Columns, ColumnTracer, mixed_positions
from gatenorm_export.checkpoints.onnx_relayouts import attribute

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionCore


class Untraced(Exception):
    """Why heads could not be found."""


@dataclasses.dataclass(frozen=True)
class Heads:
    """Columns of the query [n_heads, head_dim] and the key [n_kv_heads, head_dim]; query heads stand in the order of
    the key heads that they share."""

    query: np.ndarray
    key: np.ndarray


# Operators that project by themselves have one weight for queries, keys and values.
_PROJECTING = frozenset(
    {"Attention", "QAttention", "PackedAttention", "LongformerAttention", "DecoderMaskedSelfAttention"}
)
_OPERATORS = frozenset(
    {
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "SparseAttention", "PagedAttention"),
        *("DecoderMaskedMultiHeadAttention", "PackedMultiHeadAttention"),
    }
)


def trace_heads(cores: tuple[AttentionCore, ...], tracer: ColumnTracer) -> Heads:
    """Trace the heads of all cores of one sublayer, one core after the other.

    Raises:
        Untraced: a query or key does not come from projections in a way that can be followed.
    """
    found = [_of_core(core, tracer) for core in cores]
    if len({heads.key.shape[1] for heads in found}) != 1:
        raise Untraced("its parts have heads of different sizes")
    return Heads(*(np.concatenate([getattr(heads, name) for heads in found]) for name in ("query", "key")))


def _of_core(core: AttentionCore, tracer: ColumnTracer) -> Heads:
    node = core.node
    if node.op_type in _PROJECTING and node.domain == "com.microsoft":
        return _inside(core, tracer)
    if node.op_type in _OPERATORS:
        query, key = _of_operator(core, tracer)
    elif node.op_type.endswith("Attention"):
        raise Untraced(f"the weights of {node.op_type} are not known here")
    else:
        query, key = _of_product(core, tracer)
    return _grouped(_told(query, "query"), _told(key, "key"))


def _columns(value: ir.Value, tracer: ColumnTracer, what: str) -> Columns:
    found = tracer.columns(value)
    if found is None:
        raise Untraced(f"its {what} {value.name} cannot be followed back to a product with a weight")
    return found


def _inside(core: AttentionCore, tracer: ColumnTracer) -> Heads:
    node = core.node
    packed = tracer.columns(node.outputs[0])
    if packed is None:
        raise Untraced("its weight is no constant of the file")
    columns = packed.low.reshape(-1, packed.low.shape[-1])[0]
    widths = attribute(node, "qkv_hidden_sizes", None) or [len(columns) // 3] * 3
    n_heads = attribute(node, "num_heads", 0)
    if not n_heads or widths[0] % n_heads or widths[1] % (widths[0] // n_heads):
        raise Untraced(f"its {n_heads} heads do not fill {list(widths)}")
    head_dim = widths[0] // n_heads
    query, key = columns[: widths[0]], columns[widths[0] : widths[0] + widths[1]]
    repeats = n_heads // max(1, widths[1] // head_dim)
    return _grouped(query.reshape(n_heads, -1), np.repeat(key.reshape(-1, head_dim), repeats, axis=0))


def _of_operator(core: AttentionCore, tracer: ColumnTracer) -> tuple[Columns, Columns]:
    """Columns [n_heads, head_dim] of each; key heads are repeated to the query heads."""
    node, packed = core.node, core.key is core.query
    n_heads = attribute(node, "num_heads", 0) or attribute(node, "q_num_heads", 0)
    n_kv_heads = attribute(node, "kv_num_heads", 0)
    query = _columns(core.query, tracer, "query")
    if not n_heads and query.low.ndim == 4:
        n_heads = query.low.shape[1]
    query = _of_one_token(query)
    shape = query.low.shape
    if not n_heads:
        raise Untraced("its number of heads is not told")
    if packed and shape[-2:-1] == (3,):
        # [batch, sequence, heads, 3, head_dim]
        parts = [query.low.reshape(n_heads, 3, -1), query.high.reshape(n_heads, 3, -1)]
        return Columns(*(part[:, 0] for part in parts)), Columns(*(part[:, 1] for part in parts))
    if packed:
        n_kv_heads = n_kv_heads or n_heads
        head_dim = query.low.size // (n_heads + 2 * n_kv_heads)
        ends = n_heads * head_dim, (n_heads + n_kv_heads) * head_dim
        flat = [query.low.reshape(-1), query.high.reshape(-1)]
        query = Columns(*(part[: ends[0]] for part in flat))
        key = Columns(*(part[ends[0] : ends[1]] for part in flat))
    else:
        key = _columns(core.key, tracer, "key")
        both = key.low.ndim == 5 and key.low.shape[-2] == 2
        key = _of_one_token(key)
        if both:
            # [batch, sequence, heads, 2, head_dim]
            key = Columns(key.low[:, 0], key.high[:, 0])
    if query.low.size % n_heads or key.low.size % (query.low.size // n_heads):
        raise Untraced(f"{query.low.size} queries and {key.low.size} keys do not fill {n_heads} heads")
    head_dim = query.low.size // n_heads
    repeats = n_heads // max(1, key.low.size // head_dim)
    return (
        Columns(query.low.reshape(n_heads, head_dim), query.high.reshape(n_heads, head_dim)),
        Columns(*(np.repeat(part.reshape(-1, head_dim), repeats, axis=0) for part in (key.low, key.high))),
    )


def _of_one_token(columns: Columns) -> Columns:
    """The first of [tokens, width], [batch, tokens, ...] or, with four axes, [batch, heads, tokens, head_dim]."""
    first: tuple[int | slice, ...] = {2: (0,), 4: (0, slice(None), 0)}.get(columns.low.ndim, (0, 0))
    return Columns(columns.low[first], columns.high[first])


def _of_product(core: AttentionCore, tracer: ColumnTracer) -> tuple[Columns, Columns]:
    """The same of a product of queries [.., rows, head_dim] and keys [.., head_dim, 1]; leading axes are heads."""
    product = next((node for node in core.query.consumers() if core.key in node.inputs), None)
    query, key = _columns(core.query, tracer, "query"), _columns(core.key, tracer, "key")
    if product is None:
        raise Untraced("its queries and keys are not multiplied with each other")
    across_query, across_key = attribute(product, "transA", 0), not attribute(product, "transB", 0)
    if product.op_type == "Einsum":
        across_query, across_key = _einsum(attribute(product, "equation", ""))
    parts = []
    for queries, keys in ((query.low, key.low), (query.high, key.high)):
        if queries.ndim < 2 or keys.ndim < 2:
            raise Untraced("its product is not one of matrices")
        queries = queries.swapaxes(-1, -2) if across_query else queries
        keys = keys.swapaxes(-1, -2) if across_key else keys
        # All tokens have the same columns, so one stands for each.
        keys = keys[..., :1, :]
        if queries.shape[-1] != keys.shape[-1]:
            raise Untraced(f"queries {list(queries.shape)} and keys {list(keys.shape)} do not fit each other")
        shape = np.broadcast_shapes(queries.shape, keys.shape)
        parts.append([np.broadcast_to(part, shape).reshape(-1, shape[-1]) for part in (queries, keys)])
    (query_low, key_low), (query_high, key_high) = parts
    return Columns(query_low, query_high), Columns(key_low, key_high)


def _einsum(equation: str) -> tuple[bool, bool]:
    """Whether the summed index stands before the last of each factor."""
    factors, _, result = equation.replace(" ", "").partition("->")
    left, _, right = factors.partition(",")
    summed = [letter for letter in left if letter in right and letter not in result]
    if len(summed) != 1 or any(letter not in side[-2:] for letter in summed for side in (left, right)):
        raise Untraced(f"the product {equation} is not known here")
    return left[-1] != summed[0], right[-1] != summed[0]


def _told(columns: Columns, what: str) -> np.ndarray:
    """[n_heads, head_dim], each head's columns in the order of their positions."""
    heads = [mixed_positions(low, high) for low, high in zip(columns.low, columns.high, strict=True)]
    if any(head is None for head in heads):
        raise Untraced(f"its {what} mixes the results of its projections in a way that cannot be told apart")
    return np.array(heads)


def _grouped(query: np.ndarray, key: np.ndarray) -> Heads:
    """Each key head once, and the query heads in their order."""
    if query.shape != key.shape:
        raise Untraced(f"{len(key)} key heads do not divide among {len(query)} query heads")
    # Where the length of the sequence is fixed, each head stands there once for each token.
    _, firsts = np.unique(np.concatenate([query, key], axis=1), axis=0, return_index=True)
    query, key = query[np.sort(firsts)], key[np.sort(firsts)]
    groups: dict[bytes, list[int]] = {}
    for head, columns in enumerate(key):
        groups.setdefault(columns.tobytes(), []).append(head)
    if len(np.unique(query)) != query.size:
        raise Untraced("several of its query heads have columns in common")
    if len({len(heads) for heads in groups.values()}) != 1:
        raise Untraced("its key heads serve different numbers of query heads")
    order = [head for heads in groups.values() for head in heads]
    return Heads(query[order], key[[heads[0] for heads in groups.values()]])
