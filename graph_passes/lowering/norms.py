"""Norms as sums, products and means, with their statistics in float32 as the fused operators take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.lowering.lower_tape import FLOAT, INT32, CannotLower, LowerTape
from graph_passes.operators import SKIP_NORMS, operator_of

Results = Sequence[ir.Value | None]


def lower_norm(tape: LowerTape) -> Results:
    """LayerNormalization, RMSNormalization and SimplifiedLayerNormalization over the last axis.

    Raises:
        CannotLower: it norms over several axes.
    """
    axis = tape.integer("axis", -1)
    value = tape.needed(0)
    if axis != -1 and axis != tape.rank(value) - 1:
        raise CannotLower(f"it norms from axis {axis} on; only the last axis is known")
    centred = tape.node.op_type == "LayerNormalization"
    shift = tape.operand(2) if centred else None
    done = written_norm(tape, value, tape.operand(1), shift, tape.real("epsilon", 1e-5), centred=centred)
    inverse = done.inverse(tape) if tape.wanted(2 if centred else 1) else None
    return [done.result, done.mean, inverse] if centred else [done.result, inverse]


def lower_skip_norm(tape: LowerTape) -> Results:
    """SkipLayerNormalization and SkipSimplifiedLayerNormalization: the sum, the norm of it, and its statistics."""
    skip = SKIP_NORMS[operator_of(tape.node)]
    summands = [tape.needed(0), tape.needed(1)]
    bias = tape.operand(skip.bias)
    total = tape.sum_of([*summands, bias] if bias is not None else summands)
    shift = tape.operand(skip.shift) if skip.shift is not None else None
    epsilon = tape.real("epsilon", skip.epsilon)
    centred = skip.shift is not None
    done = written_norm(tape, total, tape.operand(skip.scale), shift, epsilon, centred=centred)
    # Without a mean of its own the operator's is zero.
    mean = done.mean or (tape.op("Sub", done.deviation, done.deviation) if tape.wanted(1) else None)
    inverse = done.inverse(tape) if tape.wanted(2) else None
    return [done.result, mean, inverse, total][: len(tape.node.outputs)]


def lower_embedding_norm(tape: LowerTape) -> Results:
    """EmbedLayerNormalization: word, position and segment embeddings, added and normed.

    Positions are 0, 1, ... unless they are given. The mask's length (result 1) is the number of ones in each row, 0
    without a mask.

    Raises:
        CannotLower: an embedding is absent.
    """
    tokens, segments, given = tape.needed(0), tape.operand(1), tape.operand(8)
    words = tape.op("Gather", tape.needed(2), tokens, axis=0)
    positions = given if given is not None else tape.positions(tape.length(tokens, 1))
    parts = [words, tape.op("Gather", tape.needed(3), positions, axis=0)]
    if segments is not None:
        parts.append(tape.op("Gather", tape.needed(4), segments, axis=0))
    total = tape.sum_of(parts)
    normed = written_norm(tape, total, tape.operand(5), tape.operand(6), tape.real("epsilon", 1e-12), centred=True)
    lengths = None
    if tape.wanted(1):
        mask = tape.operand(7)
        if mask is None:
            zero = ir.tensor([0], dtype=INT32)
            lengths = tape.op("ConstantOfShape", tape.length(tokens, 0), value=zero)
        else:
            lengths = tape.op("ReduceSum", mask, tape.ints(1), keepdims=0)
    return [normed.result, lengths, total][: len(tape.node.outputs)]


@dataclasses.dataclass(frozen=True)
class Normed:
    """A norm's result, and its statistics in float32; ``mean`` is None where nothing was centred."""

    result: ir.Value
    mean: ir.Value | None
    deviation: ir.Value

    def inverse(self, tape: LowerTape) -> ir.Value:
        """One over the deviation, as training would keep it."""
        return tape.op("Reciprocal", self.deviation)


def written_norm(
    tape: LowerTape,
    value: ir.Value,
    scale: ir.Value | None,
    shift: ir.Value | None,
    epsilon: float,
    *,
    centred: bool,
) -> Normed:
    """The norm over the last axis, written out; squares of half-precision numbers overflow, so they are widened."""
    wide, mean = tape.cast(value, FLOAT), None
    if centred:
        mean = tape.mean(wide)
        wide = tape.op("Sub", wide, mean)
    deviation = tape.op("Sqrt", tape.op("Add", tape.mean(tape.op("Mul", wide, wide)), tape.number(epsilon, wide)))
    normed = tape.cast(tape.op("Div", wide, deviation), tape.dtype(value))
    if scale is not None:
        normed = tape.op("Mul", normed, scale)
    return Normed(tape.op("Add", normed, shift) if shift is not None else normed, mean, deviation)
