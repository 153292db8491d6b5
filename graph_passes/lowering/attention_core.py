"""The arithmetic that every fused attention operator has in common, written out."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir

from graph_passes.lowering.lower_tape import FLOAT, INT64, LowerTape


@dataclasses.dataclass(frozen=True)
class Scores:
    """How scores become probabilities: ``softmax(cap(scale * q k^T) + biases)``.

    ``scale`` None is 1 / sqrt(size of a head). ``biases`` are added one after the other. ``allowed`` is false where a
    score is replaced by the lowest number. Where ``rows`` [..., length, 1] is false a query sees nothing, and its
    probabilities are zero. ``sink`` [heads] is a further score of each head that takes part in the softmax and in
    nothing else. ``precision`` is the type that the softmax is computed in.
    """

    scale: float | None = None
    softcap: float = 0.0
    biases: tuple[ir.Value, ...] = ()
    allowed: ir.Value | None = None
    rows: ir.Value | None = None
    sink: ir.Value | None = None
    precision: ir.DataType | None = None


@dataclasses.dataclass(frozen=True)
class Attended:
    """What attention computes on its way: scores raw, capped and with biases, probabilities, and the context.

    All but the context [batch, heads, length, size] are [batch, heads, length, total length].
    """

    raw: ir.Value
    capped: ir.Value
    biased: ir.Value
    probabilities: ir.Value
    context: ir.Value


def attend(
    tape: LowerTape,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    how: Scores,
    *,
    heads: int | None,
    kv_heads: int | None,
) -> Attended:
    """Attention of ``query`` [batch, heads, length, size] over keys and values [batch, kv_heads, total, size].

    A number of heads may be None where only the graph knows it when it runs.
    """
    dtype = tape.dtype(query)
    if heads is None or kv_heads is None:
        times = tape.op("Div", tape.length(query, 1), tape.length(key, 1))
        key, value = (repeat_heads(tape, part, kv_heads, times) for part in (key, value))
    elif heads != kv_heads:
        key, value = (repeat_heads(tape, part, kv_heads, heads // kv_heads) for part in (key, value))
    # The scale goes to the query and not to the scores: there are fewer of them, and in half precision they cannot
    # overflow before they are scaled down.
    scaled = tape.op("Mul", query, _scale(tape, query, how.scale))
    raw = capped = tape.op("MatMul", scaled, tape.transpose(key, 0, 1, 3, 2))
    if how.softcap > 0.0:
        cap = tape.number(how.softcap, raw)
        capped = tape.op("Mul", tape.op("Tanh", tape.op("Div", raw, cap)), cap)
    biased = tape.sum_of([capped, *how.biases])
    if how.allowed is not None:
        biased = tape.op("Where", how.allowed, biased, tape.lowest(biased))
    scores = tape.cast(biased, how.precision) if how.precision is not None else biased
    probabilities = _softmax(tape, scores, how.sink)
    if how.rows is not None:
        probabilities = tape.op("Where", how.rows, probabilities, tape.number(0.0, probabilities))
    probabilities = tape.cast(probabilities, dtype)
    return Attended(raw, capped, biased, probabilities, tape.op("MatMul", probabilities, value))


def split_heads(tape: LowerTape, value: ir.Value, heads: int, size: int | None) -> ir.Value:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    result = tape.transpose(tape.reshape(value, 0, 0, heads, size or -1), 0, 2, 1, 3)
    result.shape = ir.Shape([None, heads, None, size])
    return result


def merge_heads(tape: LowerTape, value: ir.Value) -> ir.Value:
    """[batch, heads, length, size] as [batch, length, heads * size]."""
    return tape.reshape(tape.transpose(value, 0, 2, 1, 3), 0, 0, -1)


def repeat_heads(tape: LowerTape, value: ir.Value, kv_heads: int | None, times: int | ir.Value) -> ir.Value:
    """Every head of [batch, kv_heads, length, size] ``times`` [1] times in a row."""
    if kv_heads == 1:
        # A product spreads a single head over the others by itself.
        return value
    size = tape.known_length(value, 3)
    if isinstance(times, int) and kv_heads is not None:
        heads: int | ir.Value = kv_heads * times
        shape = tape.ints(1, 1, times, 1, 1)
    else:
        count = tape.ints(times) if isinstance(times, int) else times
        heads = tape.op("Mul", tape.length(value, 1), count)
        shape = tape.op("Concat", tape.ints(1, 1), count, tape.ints(1, 1), axis=0)
    spread = tape.op("Expand", tape.unsqueeze(value, 2), shape)
    if size is not None:
        return tape.reshape(spread, 0, heads, -1, size)
    return tape.reshape(spread, 0, heads, tape.length(value, 2), tape.length(value, 3))


def causal(tape: LowerTape, length: ir.Value, total: ir.Value, offset: ir.Value) -> ir.Value:
    """Which of ``total`` [1] keys each of ``length`` [1] queries may see: those up to its own position plus ``offset``.

    Bool [..., length, total]; ``offset`` is [1], or [batch, 1, 1, 1].
    """

    def make() -> ir.Value:
        rows = tape.op("Add", tape.unsqueeze(tape.positions(length), 1), offset)
        return tape.op("LessOrEqual", tape.positions(total), rows)

    return tape.once(("causal", length, total, offset), make)


def as_bias(tape: LowerTape, allowed: ir.Value, like: ir.Value) -> ir.Value:
    """A bool mask as a bias of another value's type: 0 where it holds, the lowest number elsewhere."""
    return tape.once(
        ("as bias", allowed, tape.dtype(like)),
        lambda: tape.op("Where", allowed, tape.number(0.0, like), tape.lowest(like)),
    )


def _scale(tape: LowerTape, query: ir.Value, scale: float | None) -> ir.Value:
    if scale is not None:
        return tape.number(scale, query)
    size = tape.known_length(query, 3)
    if size is not None:
        return tape.number(1.0 / math.sqrt(size), query)
    length = tape.cast(tape.length(query, 3), FLOAT)
    return tape.cast(tape.op("Reciprocal", tape.op("Sqrt", length)), tape.dtype(query))


def _softmax(tape: LowerTape, scores: ir.Value, sink: ir.Value | None) -> ir.Value:
    if sink is None:
        return tape.op("Softmax", scores, axis=-1)
    column = tape.reshape(tape.cast(sink, tape.dtype(scores)), 1, -1, 1, 1)
    shape = tape.op("Concat", *(tape.length(scores, axis) for axis in (0, 1, 2)), tape.ints(1), axis=0)
    with_sink = tape.op("Softmax", tape.op("Concat", tape.op("Expand", column, shape), scores, axis=3), axis=-1)
    return tape.slice(with_sink, 3, 1, 2**31 - 1)


def rows_of(tape: LowerTape, counts: ir.Value) -> ir.Value:
    """Numbers of each row [batch] or [batch, 1] as int64 [batch, 1, 1, 1]."""
    return tape.once(("rows", counts), lambda: tape.reshape(tape.cast(counts, INT64), -1, 1, 1, 1))
