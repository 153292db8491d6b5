"""com.microsoft's activations as ONNX's own operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from graph_passes.lowering.lower_tape import LowerTape

Results = Sequence[ir.Value | None]


def lower_gelu(tape: LowerTape) -> Results:
    """Gelu and BiasGelu: x * (1 + erf(x / sqrt(2))) / 2, and Gelu of opset 20 where it is approximated by tanh."""
    approximate = tape.node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() == "tanh":
        return lower_fast_gelu(tape)
    value = _with_bias(tape)
    bell = tape.op("Erf", tape.op("Mul", value, tape.number(math.sqrt(0.5), value)))
    half = tape.op("Mul", value, tape.number(0.5, value))
    return [tape.op("Mul", half, tape.op("Add", bell, tape.number(1.0, value)))]


def lower_fast_gelu(tape: LowerTape) -> Results:
    """FastGelu: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2."""
    value = _with_bias(tape)
    cube = tape.op("Mul", tape.op("Mul", value, value), tape.op("Mul", value, tape.number(0.044715, value)))
    inner = tape.op("Mul", tape.op("Add", value, cube), tape.number(math.sqrt(2.0 / math.pi), value))
    half = tape.op("Mul", value, tape.number(0.5, value))
    return [tape.op("Mul", half, tape.op("Add", tape.op("Tanh", inner), tape.number(1.0, value)))]


def lower_quick_gelu(tape: LowerTape) -> Results:
    """QuickGelu: x * sigmoid(alpha * x). ONNX Runtime also makes x * sigmoid(x) of it, with alpha 1."""
    value, alpha = tape.needed(0), tape.real("alpha", 1.702)
    inner = value if alpha == 1.0 else tape.op("Mul", value, tape.number(alpha, value))
    return [tape.op("Mul", value, tape.op("Sigmoid", inner))]


def _with_bias(tape: LowerTape) -> ir.Value:
    value, bias = tape.needed(0), tape.operand(1)
    return value if bias is None else tape.op("Add", value, bias)
