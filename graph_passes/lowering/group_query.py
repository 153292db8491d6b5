"""com.microsoft GroupQueryAttention as onnxruntime-genai writes it, as products and a softmax."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.lowering.attention_core import Scores, attend, merge_heads, rows_of, split_heads
from graph_passes.lowering.lower_tape import INT64, CannotLower, LowerTape
from graph_passes.lowering.norms import written_norm
from graph_passes.lowering.rotary import gathered, rotated

Results = Sequence[ir.Value | None]

_BEYOND = {12: "k_scale", 13: "v_scale", 16: "query_seqlens"}
"""Operands of forms that are not known, by their names."""


def lower_group_query(tape: LowerTape) -> Results:
    """Grouped-query attention over a cache that grows, or that is a buffer of fixed length.

    Row ``b`` has ``seqlens_k[b] + 1`` tokens; a prompt (as many new tokens as there are in total) starts from none, and
    otherwise the new tokens are the last ones. They go into the cache behind the row's own earlier tokens, so rows of
    different lengths are as right as the operator makes them.

    Raises:
        CannotLower: the cache is quantised or a window, a mask of new tokens is given, or the scores are read.
    """
    for index, name in _BEYOND.items():
        if tape.operand(index) is not None:
            raise CannotLower(f"it has {name}")
    if tape.integer("sliding_window_cache", 0):
        raise CannotLower("its cache is a window (sliding_window_cache)")
    if tape.wanted(3):
        raise CannotLower("its scores are read (output_qk)")
    if not tape.integer("causal", 1):
        raise CannotLower("it is not causal")
    heads, kv_heads = tape.integer("num_heads"), tape.integer("kv_num_heads")
    past_key, past_value = tape.operand(3), tape.operand(4)
    query, key, value = _heads(tape, heads, kv_heads, past_key)
    query, key = _normed(tape, query, 14), _normed(tape, key, 15)
    counts = rows_of(tape, tape.needed(5))
    length = tape.length(tape.needed(0), 1)
    total = tape.once(("total", tape.needed(6)), lambda: tape.reshape(tape.cast(tape.needed(6), INT64), 1))
    start = _starts(tape, counts, length, total)
    if tape.integer("do_rotary", 0):
        query, key = _turned(tape, query, key, length, total, start)
    if past_key is not None and past_value is not None:
        key = _stored(tape, past_key, key, start, length, total)
        value = _stored(tape, past_value, value, start, length, total)
    allowed = _visible(tape, counts, start, length, total)
    scale = tape.real("scale", 0.0)
    bias = tape.operand(10)
    sink = tape.operand(11)
    if sink is None and tape.integer("smooth_softmax", 0) == 1:
        sink = tape.op("Constant", value=ir.tensor([0.0] * heads, dtype=tape.dtype(query)))
    how = Scores(
        scale=scale or None,
        softcap=tape.real("softcap", 0.0),
        biases=() if bias is None else (bias,),
        allowed=allowed,
        rows=_rows_that_see(tape, counts, start, length),
        sink=sink,
    )
    done = attend(tape, query, key, value, how, heads=heads, kv_heads=kv_heads)
    return [merge_heads(tape, done.context), key, value, None][: len(tape.node.outputs)]


def _heads(tape: LowerTape, heads: int, kv_heads: int, past: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Query, key and value [batch, heads, length, size], which may come packed in one."""
    query, key, value = tape.needed(0), tape.operand(1), tape.operand(2)
    size = tape.known_length(past, 3) if past is not None else None
    width = tape.known_length(query, 2)
    packed = key is None or value is None
    if size is None and width is not None:
        size = width // (heads + 2 * kv_heads if packed else heads)
    if key is not None and value is not None:
        query = split_heads(tape, query, heads, size)
        return query, split_heads(tape, key, kv_heads, size), split_heads(tape, value, kv_heads, size)
    ends = (0, heads, heads + kv_heads, heads + 2 * kv_heads)
    joined = split_heads(tape, query, ends[3], size)
    parts = [tape.slice(joined, 1, start, end) for start, end in itertools.pairwise(ends)]
    for part, count in zip(parts, (heads, kv_heads, kv_heads), strict=True):
        part.shape = ir.Shape([None, count, None, size])
    return parts[0], parts[1], parts[2]


def _normed(tape: LowerTape, value: ir.Value, index: int) -> ir.Value:
    scale = tape.operand(index)
    if scale is None:
        return value
    epsilon = tape.real("qk_norm_epsilon", 1e-6)
    epsilon = tape.real("q_norm_epsilon" if index == 14 else "k_norm_epsilon", epsilon)
    normed = written_norm(tape, value, scale, None, epsilon, centred=False).result
    normed.shape = value.shape
    return normed


def _starts(tape: LowerTape, counts: ir.Value, length: ir.Value, total: ir.Value) -> ir.Value:
    """How many tokens each row had before: [batch, 1, 1, 1], none where all tokens are new."""

    def make() -> ir.Value:
        before = tape.op("Sub", tape.op("Add", counts, tape.ints(1)), length)
        zero = tape.ints(0)
        later = tape.op("Where", tape.op("Equal", length, total), zero, before)
        # A row with fewer tokens than there are new ones is an error of the client's, not a place before the cache.
        return tape.op("Max", later, zero)

    return tape.once(("starts", counts, length, total), make)


def _turned(
    tape: LowerTape, query: ir.Value, key: ir.Value, length: ir.Value, total: ir.Value, start: ir.Value
) -> tuple[ir.Value, ir.Value]:
    cosines, sines, given = tape.needed(7), tape.needed(8), tape.operand(9)

    def places() -> ir.Value:
        counted = tape.unsqueeze(tape.positions(length), 0)
        if given is None:
            return tape.op("Add", tape.reshape(start, -1, 1), counted)
        # Of a prompt's positions the operator reads the first alone and counts on from there.
        first = tape.slice(tape.slice(given, 0, 0, 1), 1, 0, 1)
        return tape.op("Where", tape.op("Equal", length, total), tape.op("Add", first, counted), given)

    positions = tape.once(("places", start, given), places)
    cosine, sine = gathered(tape, cosines, positions), gathered(tape, sines, positions)
    interleaved = tape.integer("rotary_interleaved", 0)
    turned = [rotated(tape, part, cosine, sine, interleaved) for part in (query, key)]
    for part, before in zip(turned, (query, key), strict=True):
        part.shape = before.shape
    return turned[0], turned[1]


def _stored(
    tape: LowerTape, past: ir.Value, new: ir.Value, start: ir.Value, length: ir.Value, total: ir.Value
) -> ir.Value:
    """The cache with the new tokens in it: as long as the past or the total, whichever is longer.

    They are appended where the longest row has them, which lengths alone tell, and then written to where each row has
    them. What lies behind a row's last token is zero.
    """
    before = tape.once(("before", total, length), lambda: tape.op("Sub", total, length))
    whole = tape.op("Concat", tape.slice(past, 2, 0, before), new, tape.slice(past, 2, total, 2**31 - 1), axis=2)
    end = tape.once(("ends", start, length), lambda: tape.op("Add", start, length))

    cached = _cache_length(tape, past, length, total)

    def kept() -> ir.Value:
        return tape.op("Less", tape.reshape(tape.positions(cached), 1, 1, -1, 1), end)

    placed = tape.op("ScatterND", whole, _places(tape, new, start, length), new)
    there = tape.once(("there", cached, end), kept)
    result = tape.op("Where", there, placed, tape.number(0.0, placed))
    result.shape = ir.Shape([None, tape.known_length(new, 1), None, tape.known_length(new, 3)])
    return result


def _places(tape: LowerTape, new: ir.Value, start: ir.Value, length: ir.Value) -> ir.Value:
    """Where each new token goes in [batch, heads, length, size]: indices [batch, heads, new length, 3]."""
    heads = tape.known_length(new, 1)
    assert heads is not None

    def make() -> ir.Value:
        batch = tape.length(tape.needed(0), 0)
        shape = tape.op("Concat", batch, tape.ints(heads), length, tape.ints(1), axis=0)
        rows = tape.reshape(tape.positions(batch), -1, 1, 1, 1)
        head = tape.reshape(tape.positions(tape.ints(heads)), 1, -1, 1, 1)
        places = tape.op("Add", start, tape.reshape(tape.positions(length), 1, 1, -1, 1))
        return tape.op("Concat", *(tape.op("Expand", part, shape) for part in (rows, head, places)), axis=3)

    return tape.once(("places of new tokens", tape.length(tape.needed(0), 0), heads, start, length), make)


def _cache_length(tape: LowerTape, past: ir.Value, length: ir.Value, total: ir.Value) -> ir.Value:
    """The length of the cache afterwards. Layers whose pasts have one declared length share it, and their masks."""
    declared = past.shape[2] if past.shape is not None and past.is_graph_input() else None
    name = declared.value if isinstance(declared, ir.SymbolicDim) else declared
    key = past if name is None else name
    return tape.once(("cache length", key, total), lambda: tape.op("Max", tape.length(past, 2), total))


def _visible(tape: LowerTape, counts: ir.Value, start: ir.Value, length: ir.Value, total: ir.Value) -> ir.Value:
    """Which keys a token may see: none behind it, none behind the row's last, none further back than the window."""
    past, window = tape.operand(3), tape.integer("local_window_size", -1)
    keys = _cache_length(tape, past, length, total) if past is not None else length
    # Behind a row's last token there is padding only; there the operator's kernels differ in where the window starts.
    capped = tape.real("softcap", 0.0) > 0.0

    def make() -> ir.Value:
        columns, rows = tape.positions(keys), _rows(tape, start, length)
        last = tape.op("Min", rows, counts)
        seen = tape.op("LessOrEqual", columns, last)
        if window > 0:
            first = tape.op("Sub", last if capped else rows, tape.ints(window))
            seen = tape.op("And", seen, tape.op("Greater", columns, first))
        return seen

    return tape.once(("visible", keys, counts, start, length, window, capped and window > 0), make)


def _rows_that_see(tape: LowerTape, counts: ir.Value, start: ir.Value, length: ir.Value) -> ir.Value | None:
    """Which tokens see any key: behind the last token of a shorter row, the window may hold none."""
    window = tape.integer("local_window_size", -1)
    if window <= 0 or tape.real("softcap", 0.0) > 0.0:
        return None
    return tape.once(
        ("rows that see", counts, start, length, window),
        lambda: tape.op("Less", tape.op("Sub", _rows(tape, start, length), counts), tape.ints(window)),
    )


def _rows(tape: LowerTape, start: ir.Value, length: ir.Value) -> ir.Value:
    """The place of every new token in its row: [batch, 1, length, 1]."""
    return tape.once(
        ("places of tokens", start, length),
        lambda: tape.op("Add", tape.unsqueeze(tape.positions(length), 1), start),
    )
