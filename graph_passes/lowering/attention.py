"""ai.onnx Attention (opset 23 to 25) as products and a softmax."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.lowering.attention_core import Scores, as_bias, attend, causal, merge_heads, rows_of, split_heads
from graph_passes.lowering.lower_tape import BOOL, CannotLower, LowerTape

Results = Sequence[ir.Value | None]


def lower_attention(tape: LowerTape) -> Results:
    """Attention with or without past and present, of four axes, or of three and numbers of heads.

    What a bool mask hides, and what the causal mask hides, gets the lowest number added, and the probabilities of a row
    that sees nothing are zero: so the operator's own kernels do.

    Raises:
        CannotLower: numbers of heads or axes cannot be told, or a result is read in a form that is not known.
    """
    query, key, value, mask = (tape.operand(index) for index in range(4))
    past_key, past_value, filled = (tape.operand(index) for index in (4, 5, 6))
    if query is None or key is None or value is None:
        raise CannotLower("query, key or value is absent")
    heads: int | None = tape.integer("q_num_heads", 0)
    kv_heads: int | None = tape.integer("kv_num_heads", 0)
    merged = bool(heads)
    if heads and kv_heads:
        sizes = [_size(tape, part, count) for part, count in ((query, heads), (key, kv_heads), (value, kv_heads))]
        known = tape.known_length(past_key, 3) if past_key is not None else None
        query = split_heads(tape, query, heads, sizes[0] or known)
        key = split_heads(tape, key, kv_heads, sizes[1] or known)
        value = split_heads(tape, value, kv_heads, sizes[2])
    else:
        heads, kv_heads = tape.known_length(query, 1), tape.known_length(key, 1)
    past_length = tape.length(past_key, 2) if past_key is not None else None
    new_length = tape.length(query, 2)
    if past_key is not None and past_value is not None:
        key, value = (_appended(tape, past, new) for past, new in ((past_key, key), (past_value, value)))
    bias, guarded = _bias(tape, query, key, mask, past_length, filled, new_length)
    precision = tape.integer("softmax_precision", 0)
    how = Scores(
        scale=tape.real("scale", 0.0) if "scale" in tape.node.attributes else None,
        softcap=tape.real("softcap", 0.0),
        biases=() if bias is None else (bias,),
        rows=_rows_that_see(tape, bias) if bias is not None and guarded else None,
        precision=ir.DataType(precision) if precision else None,
    )
    done = attend(tape, query, key, value, how, heads=heads, kv_heads=kv_heads)
    context = merge_heads(tape, done.context) if merged else done.context
    modes = (done.raw, done.capped, done.biased, done.probabilities)
    mode = tape.integer("qk_matmul_output_mode", 0)
    return [context, key, value, modes[mode]][: len(tape.node.outputs)]


def _rows_that_see(tape: LowerTape, bias: ir.Value) -> ir.Value:
    return tape.once(("rows that see", bias), lambda: tape.op("Greater", tape.maximum(bias), tape.lowest(bias)))


def _appended(tape: LowerTape, past: ir.Value, new: ir.Value) -> ir.Value:
    whole = tape.op("Concat", past, new, axis=2)
    length = tape.known_length(past, 3) or tape.known_length(new, 3)
    whole.shape = ir.Shape([None, tape.known_length(past, 1), None, length])
    return whole


def _size(tape: LowerTape, value: ir.Value, heads: int) -> int | None:
    width = tape.known_length(value, 2)
    return width // heads if width is not None else None


def _bias(
    tape: LowerTape,
    query: ir.Value,
    key: ir.Value,
    mask: ir.Value | None,
    past_length: ir.Value | None,
    filled: ir.Value | None,
    new_length: ir.Value,
) -> tuple[ir.Value | None, bool]:
    """Everything that is added to the scores, and whether it may hide all keys from a query."""
    total = tape.once(("keys", key), lambda: tape.length(key, 2))
    if past_length is not None:
        total = tape.once(("sum", past_length, new_length), lambda: tape.op("Add", past_length, new_length))
    elif filled is not None:
        total = tape.length(key, 2)
    parts: list[ir.Value] = []
    if mask is not None:
        padded = _padded(tape, mask, total) if tape.opset >= 24 and filled is not None else mask
        parts.append(as_bias(tape, padded, query) if tape.dtype(mask) == BOOL else padded)
    rows = rows_of(tape, filled) if filled is not None else None
    left, right = tape.integer("left_window_size", -1), tape.integer("right_window_size", -1)
    if tape.integer("is_causal", 0) or left >= 0 or right >= 0:
        offset = past_length if past_length is not None else tape.ints(0)
        if rows is not None:
            offset = tape.once(("offset", filled, new_length), lambda: tape.op("Sub", rows, new_length))
        elif past_length is None:
            offset = tape.once("no offset", lambda: tape.ints(0))
        if tape.integer("is_causal", 0):
            parts.append(as_bias(tape, causal(tape, new_length, total, offset), query))
        if left >= 0 or right >= 0:
            parts.append(as_bias(tape, _window(tape, new_length, total, offset, left, right), query))
    if rows is not None:
        seen = tape.once(("filled", filled, total), lambda: tape.op("Less", tape.positions(total), rows))
        parts.append(as_bias(tape, seen, query))
    if not parts:
        return None, False
    key_of = ("bias", *parts)
    bias = tape.once(key_of, lambda: tape.sum_of(parts))
    return bias, mask is not None or rows is not None or left >= 0 or right >= 0


def _window(tape: LowerTape, length: ir.Value, total: ir.Value, offset: ir.Value, left: int, right: int) -> ir.Value:
    def make() -> ir.Value:
        rows = tape.op("Add", tape.unsqueeze(tape.positions(length), 1), offset)
        distance = tape.op("Sub", rows, tape.positions(total))
        sides = []
        if left >= 0:
            sides.append(tape.op("LessOrEqual", distance, tape.ints(left)))
        if right >= 0:
            sides.append(tape.op("GreaterOrEqual", distance, tape.ints(-right)))
        return sides[0] if len(sides) == 1 else tape.op("And", *sides)

    return tape.once(("window", length, total, offset, left, right), make)


def _padded(tape: LowerTape, mask: ir.Value, total: ir.Value) -> ir.Value:
    """A mask that ends before the keys do hides the rest."""
    missing = tape.op("Sub", total, tape.length(mask, -1))
    rank = tape.rank(mask)
    width = tape.op("Concat", tape.ints(*[0] * (2 * rank - 1)), missing, axis=0)
    if tape.dtype(mask) == BOOL:
        number = tape.op("Cast", mask, to=int(ir.DataType.INT32))
        return tape.op("Cast", tape.op("Pad", number, width), to=int(BOOL))
    return tape.op("Pad", mask, width, tape.lowest(mask))
