"""What all forms of attention share: projections, masks, lengths and caches."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from network_tape import WIDTH, Tape


def exit_projection(tape: Tape, layer: int, context: ir.Value, source: ir.Value, suffix: str = "") -> ir.Value:
    """The output projection in the layer's form, behind whatever sits between the heads and it."""
    spec = tape.layers[layer]
    width = WIDTH // 2 if suffix else WIDTH
    if "query residual" in spec.extras and not suffix:
        context = tape.add(layer, context, tape.queries.get(layer, context))
    if "convolution" in spec.extras and not suffix:
        context = tape.add(layer, context, tape.op("MatMul", source, tape.weight(f"wconv{layer}", WIDTH, WIDTH)))
    if "gated" in spec.extras and not suffix:
        context = tape.op("Mul", context, tape.op("Sigmoid", project(tape, layer, source, "wgate", WIDTH)))
    if spec.block == "half branch":
        half = tape.op("Cast", context, to=int(ir.DataType.FLOAT16))
        weight = tape.weight(f"wo{layer}{suffix}_half", width, WIDTH, dtype=np.float16)
        return tape.op("Cast", tape.op("MatMul", half, weight), to=int(ir.DataType.FLOAT))
    weight = tape.weight(f"wo{weight_suffix(tape, layer)}{suffix}", width, WIDTH)
    bias = tape.weight(f"bo{layer}{suffix}", WIDTH)
    if spec.exit == "bias":
        return tape.op("Add", bias, tape.op("MatMul", context, weight))
    if spec.exit == "gemm":
        flat = tape.op("Gemm", tape.op("Reshape", context, tape.constant([-1, width])), weight, bias)
        return tape.unfold(flat, source)
    projected = tape.op("MatMul", context, weight)
    if spec.exit == "lora":
        low = tape.op("MatMul", context, tape.weight(f"lora_a{layer}{suffix}", width, 2))
        high = tape.op("MatMul", low, tape.weight(f"lora_b{layer}{suffix}", 2, WIDTH))
        return tape.op("Add", projected, tape.op("Mul", high, tape.number(0.5)))
    return projected


def project(tape: Tape, layer: int, source: ir.Value, name: str, width: int) -> ir.Value:
    result = tape.op(
        "MatMul", source, tape.weight(f"{name}{weight_suffix(tape, layer)}_{width}", WIDTH, width, spread=1.5)
    )
    if "biases" in tape.layers[layer].extras:
        result = tape.op("Add", result, tape.weight(f"b{name}{layer}", width))
    return result


def mask(tape: Tape, layer: int, source: ir.Value, rank: int) -> ir.Value:
    """Causal mask and padding, [b, s, t] or [b, 1, s, t]; all layers share it or each makes its own."""
    key = f"mask of {layer}" if "a mask per layer" in tape.network.extras else "mask"
    flat = tape.once(key, lambda: _make_mask(tape, layer, source))
    return flat if rank == 3 else tape.once(f"{key} 4", lambda: tape.op("Unsqueeze", flat, tape.constant([1])))


def past_length(tape: Tape, layer: int) -> ir.Value:
    """The length of the past, from the cache tensor that the network reads it from."""
    owner, part = tape.network.length_source
    if "a mask per layer" in tape.network.extras and f"past_{layer}_key" in tape.inputs:
        owner = layer
    name = f"past_{owner}_{'value' if part == 'value' else 'key'}"
    if name not in tape.inputs:
        name = next((other for other in tape.inputs if other.startswith("past_")), "")
    if not name:
        return tape.constant([0])
    return tape.once(f"length of {name}", lambda: tape.length(tape.inputs[name], tape.inputs[name].shape.rank() - 2))


def weight_suffix(tape: Tape, layer: int) -> str:
    return "_tied" if "tied" in tape.layers[layer].extras else str(layer)


def _make_mask(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    past = past_length(tape, layer)
    present = f"present_{tape.network.length_source[0]}_key"
    concatenated = next((value for value in tape.outputs if value.name == present), None)
    if tape.network.length_source[1] == "present" and concatenated is not None:
        total = tape.length(concatenated, concatenated.shape.rank() - 2)
    else:
        total = tape.op("Add", past, tape.step(source))
    first, last = (tape.op("Squeeze", value, tape.constant([0])) for value in (past, total))
    queries = tape.op("Unsqueeze", tape.op("Range", first, last, tape.constant(1)), tape.constant([1]))
    keys = tape.op("Unsqueeze", tape.op("Range", tape.constant(0), last, tape.constant(1)), tape.constant([0]))
    allowed = tape.op("LessOrEqual", keys, queries)
    causal = tape.op("Where", allowed, tape.number(0.0), tape.number(-1e4))
    given = tape.op("Cast", tape.inputs["attention_mask"], to=int(ir.DataType.FLOAT))
    penalty = tape.op("Mul", tape.op("Sub", tape.number(1.0), given), tape.number(-1e4))
    return tape.op("Add", causal, tape.op("Unsqueeze", penalty, tape.constant([1])))


def cached(tape: Tape, layer: int, part: str, new: ir.Value, axis: int) -> ir.Value:
    past = tape.inputs.get(f"past_{layer}_{part}")
    if past is None:
        return new
    return present(tape, layer, part, tape.op("Concat", past, new, axis=axis))


def present(tape: Tape, layer: int, part: str, value: ir.Value) -> ir.Value:
    shape = [
        tape.network.mask_symbol if length == "p" else length for length in tape.inputs[f"past_{layer}_{part}"].shape
    ]
    return tape.output(value, f"present_{layer}_{part}", [x if isinstance(x, int) else str(x) for x in shape])


def queries_keys_values(
    tape: Tape, layer: int, source: ir.Value, widths: tuple[int, int, int]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    extras = tape.layers[layer].extras
    if "packed" in extras:
        packed = project(tape, layer, source, "wqkv", sum(widths))
        q, k, v = tape.multi("Split", packed, tape.constant(list(widths)), wanted=(True,) * 3, axis=-1)
    else:
        q, k, v = (project(tape, layer, source, name, w) for name, w in zip(("wq", "wk", "wv"), widths, strict=True))
    tape.queries[layer] = q
    if "value residual" in extras:
        first = tape.once(f"first value {widths[2]}", lambda: v)
        v = tape.add(layer, v, tape.op("Mul", first, tape.number(0.5)))
    return q, k, v
