"""Rotary embeddings as products and sums: RotaryEmbedding of ai.onnx and of com.microsoft."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.lowering.lower_tape import INT64, CannotLower, LowerTape

Results = Sequence[ir.Value | None]


def lower_rotary(tape: LowerTape) -> Results:
    """ai.onnx RotaryEmbedding of [batch, heads, length, size], or of [batch, length, heads * size].

    Raises:
        CannotLower: the number of axes is unknown, or heads are not counted.
    """
    value, cosines, sines, positions = tape.needed(0), tape.needed(1), tape.needed(2), tape.operand(3)
    if positions is not None:
        cosines, sines = (gathered(tape, table, positions) for table in (cosines, sines))
    return [_lowered(tape, value, cosines, sines, tape.integer("num_heads", 0))]


def lower_microsoft_rotary(tape: LowerTape) -> Results:
    """com.microsoft RotaryEmbedding. Positions are [batch, length], or [1]: that of the first token of every row.

    Raises:
        CannotLower: rows are packed into one, a scale is given, or axes are unknown.
    """
    if tape.integer("is_packed_batching", 0):
        raise CannotLower("rows are packed into one (is_packed_batching)")
    if tape.real("scale", 1.0) != 1.0:
        raise CannotLower("it has a scale of its own")
    value, positions = tape.needed(0), tape.needed(1)
    heads = tape.integer("num_heads", 0)
    if tape.rank(positions) == 1:
        four = tape.rank(value) == 4
        counted = tape.positions(tape.length(value, 2 if four else 1))
        positions = tape.unsqueeze(tape.op("Add", tape.cast(positions, INT64), counted), 0)
    cosines, sines = (gathered(tape, tape.needed(index), positions) for index in (2, 3))
    if not heads and tape.rank(value) == 3:
        # Without a number of heads the whole table tells the size of a head.
        size = tape.known_length(tape.needed(2), 1)
        if size is None:
            raise CannotLower("neither its heads nor the size of one is given")
        return [
            _merged(
                tape, rotated(tape, _split(tape, value, -1, 2 * size), cosines, sines, tape.integer("interleaved", 0))
            )
        ]
    return [_lowered(tape, value, cosines, sines, heads)]


def gathered(tape: LowerTape, table: ir.Value, positions: ir.Value) -> ir.Value:
    """The rows [batch, length, half] of a table [positions, half]; layers that share table and positions share them."""
    return tape.once(("rotary", table, positions), lambda: tape.op("Gather", table, positions, axis=0))


def rotated(tape: LowerTape, value: ir.Value, cosines: ir.Value, sines: ir.Value, interleaved: int) -> ir.Value:
    """``value`` [batch, heads, length, size] turned by angles [batch, length, half]; what is beyond 2 * half stays."""
    half = tape.known_length(cosines, -1)
    size = tape.known_length(value, 3)
    if half is None:
        half = _half_of_table(cosines)
    if half is None:
        raise CannotLower("the length of its cosines cannot be told")
    cosine, sine = (_over_heads(tape, angles) for angles in (cosines, sines))
    turned = value if size == 2 * half else tape.slice(value, 3, 0, 2 * half)
    if interleaved:
        first, second = (tape.slice(turned, 3, start, 2 * half, 2) for start in (0, 1))
    else:
        first, second = tape.slice(turned, 3, 0, half), tape.slice(turned, 3, half, 2 * half)
    real = tape.op("Sub", tape.op("Mul", first, cosine), tape.op("Mul", second, sine))
    imaginary = tape.op("Add", tape.op("Mul", first, sine), tape.op("Mul", second, cosine))
    if interleaved:
        pairs = tape.op("Concat", tape.unsqueeze(real, -1), tape.unsqueeze(imaginary, -1), axis=-1)
        joined = [tape.reshape(pairs, 0, 0, 0, 2 * half)]
    else:
        joined = [real, imaginary]
    if size != 2 * half:
        # Where the size of a head is not declared this part may be empty.
        joined.append(tape.slice(value, 3, 2 * half, 2**31 - 1))
    return joined[0] if len(joined) == 1 else tape.op("Concat", *joined, axis=3)


def _lowered(tape: LowerTape, value: ir.Value, cosines: ir.Value, sines: ir.Value, heads: int) -> ir.Value:
    interleaved = tape.integer("interleaved", 0)
    if tape.rank(value) == 4:
        return rotated(tape, value, cosines, sines, interleaved)
    if not heads:
        raise CannotLower("attribute num_heads is absent")
    return _merged(tape, rotated(tape, _split(tape, value, heads, -1), cosines, sines, interleaved))


def _split(tape: LowerTape, value: ir.Value, heads: int, size: int) -> ir.Value:
    return tape.transpose(tape.reshape(value, 0, 0, heads, size), 0, 2, 1, 3)


def _merged(tape: LowerTape, value: ir.Value) -> ir.Value:
    return tape.reshape(tape.transpose(value, 0, 2, 1, 3), 0, 0, -1)


def _over_heads(tape: LowerTape, angles: ir.Value) -> ir.Value:
    return tape.once(("over heads", angles), lambda: tape.unsqueeze(angles, 1))


def _half_of_table(cosines: ir.Value) -> int | None:
    """The last length of the table that cosines were gathered from."""
    producer = cosines.producer()
    table = producer.inputs[0] if producer is not None and producer.op_type == "Gather" else None
    if table is None or table.shape is None:
        return None
    length = table.shape[-1]
    return length if isinstance(length, int) else None
