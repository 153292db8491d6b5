"""com.microsoft MultiHeadAttention and Attention as products and a softmax."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.lowering.attention_core import Scores, attend, causal, merge_heads, split_heads
from graph_passes.lowering.lower_tape import INT64, CannotLower, LowerTape

Results = Sequence[ir.Value | None]


def lower_multi_head(tape: LowerTape) -> Results:
    """MultiHeadAttention: heads side by side or packed, self- and cross-attention, with or without past and present.

    Raises:
        CannotLower: the cache is a buffer of fixed length, beams are chosen inside, or axes cannot be told.
    """
    if tape.operand(8) is not None or tape.operand(9) is not None:
        raise CannotLower("its cache is a buffer of fixed length (past_sequence_length, cache_indirection)")
    heads = tape.integer("num_heads")
    query, key, value, with_cache = _given(tape, heads)
    past_key, past_value = tape.operand(6), tape.operand(7)
    if past_key is not None and past_value is not None and not with_cache:
        key, value = (tape.op("Concat", past, new, axis=2) for past, new in ((past_key, key), (past_value, value)))
    past = past_key if not with_cache else None
    return _finished(tape, query, key, value, past, heads, mask=tape.operand(4), bias=tape.operand(5))


def lower_microsoft_attention(tape: LowerTape) -> Results:
    """Attention, whose projections are inside: one weight for queries, keys and values.

    Raises:
        CannotLower: it turns positions itself, its cache is a buffer of fixed length, or sizes cannot be told.
    """
    if tape.integer("do_rotary", 0):
        raise CannotLower("it has rotary embeddings of its own (do_rotary)")
    if tape.integer("past_present_share_buffer", 0) or tape.operand(6) is not None:
        raise CannotLower("its cache is a buffer of fixed length (past_present_share_buffer)")
    heads = tape.integer("num_heads")
    sizes = tape.node.attributes.get("qkv_hidden_sizes")
    width = tape.known_length(tape.needed(1), 1)
    if sizes is None and width is None:
        raise CannotLower("the width of its weight cannot be told")
    widths = list(sizes.as_ints()) if sizes is not None else [(width or 0) // 3] * 3
    joined = tape.op("MatMul", tape.needed(0), tape.needed(1))
    bias = tape.operand(2)
    if bias is not None:
        joined = tape.op("Add", joined, bias)
    parts = tape.many("Split", 3, joined, tape.ints(*widths), axis=2)
    query, key, value = (
        split_heads(tape, part, heads, size // heads) for part, size in zip(parts, widths, strict=True)
    )
    past, kept = tape.operand(4), None
    if past is not None:
        halves = [tape.op("Gather", past, _scalar(tape, half), axis=0) for half in (0, 1)]
        key, value = (tape.op("Concat", before, new, axis=2) for before, new in zip(halves, (key, value), strict=True))
        kept = halves[0]
    results = _finished(tape, query, key, value, kept, heads, mask=tape.operand(3), bias=tape.operand(5))
    present = None
    if tape.wanted(1):
        present = tape.op("Concat", tape.unsqueeze(key, 0), tape.unsqueeze(value, 0), axis=0)
    return [results[0], present][: len(tape.node.outputs)]


def _scalar(tape: LowerTape, number: int) -> ir.Value:
    return tape.op("Constant", value=ir.tensor(number, dtype=INT64))


def _given(tape: LowerTape, heads: int) -> tuple[ir.Value, ir.Value, ir.Value, bool]:
    """Query, key and value [batch, heads, length, size], and whether keys and values are a cache as they are."""
    query, key, value = tape.needed(0), tape.operand(1), tape.operand(2)
    if key is None:
        # [batch, length, heads, 3, size]
        if tape.rank(query) != 5:
            raise CannotLower("it has no keys, and its queries are not packed with them")
        parts = [_unpacked(tape, query, index) for index in range(3)]
        return parts[0], parts[1], parts[2], False
    biases: list[ir.Value | None] = [None, None, None]
    bias = tape.operand(3)
    width = tape.known_length(query, 2)
    if bias is not None:
        total = tape.known_length(bias, 0)
        if width is None or total is None:
            raise CannotLower("the width of its bias or of its queries cannot be told")
        ends = (0, width, 2 * width, total)
        biases = [tape.slice(bias, 0, start, end) for start, end in itertools.pairwise(ends)]
    query = _split(tape, query, biases[0], heads)
    if value is None:
        if tape.rank(key) != 5:
            raise CannotLower("it has no values, and its keys are not packed with them")
        return query, _unpacked(tape, key, 0), _unpacked(tape, key, 1), False
    if tape.rank(key) == 4:
        return query, key, value, True
    return query, _split(tape, key, biases[1], heads), _split(tape, value, biases[2], heads), False


def _unpacked(tape: LowerTape, packed: ir.Value, index: int) -> ir.Value:
    return tape.transpose(tape.op("Gather", packed, _scalar(tape, index), axis=3), 0, 2, 1, 3)


def _split(tape: LowerTape, value: ir.Value, bias: ir.Value | None, heads: int) -> ir.Value:
    width = tape.known_length(value, 2)
    if bias is not None:
        value = tape.op("Add", value, bias)
    return split_heads(tape, value, heads, width // heads if width is not None else None)


def _finished(
    tape: LowerTape,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    past: ir.Value | None,
    heads: int,
    *,
    mask: ir.Value | None,
    bias: ir.Value | None,
) -> Results:
    """The results, and keys and values as they are cached."""
    length, total = tape.length(query, 2), tape.length(key, 2)
    biases = [] if bias is None else [bias]
    if mask is not None:
        biases.append(_of_mask(tape, mask, query, total))
    allowed = None
    if tape.integer("unidirectional", 0):
        new = tape.length(query, 2)
        offset = tape.once(("offset", new, total), lambda: tape.op("Sub", total, new))
        allowed = causal(tape, length, total, offset)
    how = Scores(scale=tape.real("scale", 0.0) or None, biases=tuple(biases), allowed=allowed)
    done = attend(tape, query, key, value, how, heads=heads, kv_heads=heads)
    return [merge_heads(tape, done.context), key, value, done.probabilities][: len(tape.node.outputs)]


def _of_mask(tape: LowerTape, mask: ir.Value, like: ir.Value, total: ir.Value) -> ir.Value:
    """A mask of ones, or of lengths, as what it adds to the scores: the filter value where a key is hidden.

    Lengths are [batch], ends, or [2 * batch], ends and then starts; which of them, only the batch tells.
    """
    rank = tape.rank(mask)
    filtered = tape.real("mask_filter_value", -10000.0)
    if rank == 4:
        raise CannotLower("its mask has four axes, of which it cuts a part by the past length")

    def make() -> ir.Value:
        if rank == 1:
            seen = _within(tape, mask, like, total)
        else:
            seen = tape.op("Greater", tape.unsqueeze(mask, *((1, 2) if rank == 2 else (1,))), tape.number(0.0, mask))
        return tape.op("Where", seen, tape.number(0.0, like), tape.number(filtered, like))

    return tape.once(("mask", mask, tape.dtype(like), filtered, total if rank == 1 else None), make)


def _within(tape: LowerTape, mask: ir.Value, like: ir.Value, total: ir.Value) -> ir.Value:
    batch = tape.length(like, 0)
    bounds = tape.cast(mask, INT64)
    # Starts come behind the ends, or not at all: then what is padded with zeros holds them.
    none = tape.op("Mul", tape.slice(bounds, 0, 0, batch), tape.ints(0))
    padded = tape.op("Concat", bounds, none, axis=0)
    ends = tape.reshape(tape.slice(padded, 0, 0, batch), -1, 1, 1, 1)
    starts = tape.reshape(tape.slice(padded, 0, batch, tape.op("Mul", batch, tape.ints(2))), -1, 1, 1, 1)
    places = tape.positions(total)
    return tape.op("And", tape.op("Less", places, ends), tape.op("GreaterOrEqual", places, starts))
