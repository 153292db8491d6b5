"""Attention as one operator: of ai.onnx, and of onnxruntime."""

from __future__ import annotations

import onnx_ir as ir
from network_tape import HEADS, MICROSOFT, SIZE, WIDTH, Tape
from random_parts import exit_projection, mask, present, project, queries_keys_values, weight_suffix

# The kernel wants head sizes in multiples of eight.
GROUP_QUERY_HEADS, GROUP_QUERY_SIZE = 2, 8


def _presents(tape: Tape, layer: int, outputs: tuple[ir.Value, ...]) -> ir.Value:
    for part, value in zip(("key", "value"), outputs[1:], strict=False):
        if f"past_{layer}_{part}" in tape.inputs:
            present(tape, layer, part, value)
    return outputs[0]


def _pasts(tape: Tape, layer: int) -> tuple[ir.Value | None, ir.Value | None]:
    return tape.inputs.get(f"past_{layer}_key"), tape.inputs.get(f"past_{layer}_value")


def attention_op(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """ai.onnx Attention of opset 23, grouped-query."""
    q, k, v = queries_keys_values(tape, layer, source, (WIDTH, 2 * SIZE, 2 * SIZE))
    pasts = _pasts(tape, layer)
    bias = mask(tape, layer, source, 4) if "mask" in tape.layers[layer].scores else None
    wanted = (True, True, True) if pasts[0] else (True,)
    outputs = tape.multi(
        "Attention", q, k, v, bias, *pasts, wanted=wanted, q_num_heads=HEADS, kv_num_heads=2, scale=0.5
    )
    return exit_projection(tape, layer, _presents(tape, layer, outputs), source)


def multi_head_op(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    q, k, v = queries_keys_values(tape, layer, source, (WIDTH, WIDTH, WIDTH))
    pasts = _pasts(tape, layer)
    bias = mask(tape, layer, source, 4) if "mask" in tape.layers[layer].scores else None
    wanted = (True, True, True) if pasts[0] else (True,)
    outputs = tape.multi(
        "MultiHeadAttention", q, k, v, None, None, bias, *pasts, domain=MICROSOFT, wanted=wanted, num_heads=HEADS
    )
    return exit_projection(tape, layer, _presents(tape, layer, outputs), source)


def group_query_op(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """As onnxruntime-genai writes it: lengths from the attention mask, shared by all layers."""
    widths = (GROUP_QUERY_HEADS * GROUP_QUERY_SIZE, GROUP_QUERY_SIZE, GROUP_QUERY_SIZE)
    if "packed" in tape.layers[layer].extras:
        q, k, v = project(tape, layer, source, "wqkv", sum(widths)), None, None
    else:
        q, k, v = queries_keys_values(tape, layer, source, widths)
    given = tape.inputs["attention_mask"]

    def last() -> ir.Value:
        total = tape.op("ReduceSum", given, tape.constant([1]), keepdims=0)
        return tape.op("Cast", tape.op("Sub", total, tape.constant([1])), to=int(ir.DataType.INT32))

    def total() -> ir.Value:
        length = tape.op("Squeeze", tape.length(given, 1), tape.constant([0]))
        return tape.op("Cast", length, to=int(ir.DataType.INT32))

    outputs = tape.multi(
        "GroupQueryAttention",
        *(q, k, v, *_pasts(tape, layer), tape.once("last", last), tape.once("total", total)),
        domain=MICROSOFT,
        wanted=(True, True, True),
        num_heads=GROUP_QUERY_HEADS,
        kv_num_heads=1,
    )
    return exit_projection(tape, layer, _presents(tape, layer, outputs), source)


def microsoft_attention(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """The fused operator of optimized encoders, with the projections inside; it has no cache."""
    weight = tape.weight(f"wqkv{weight_suffix(tape, layer)}", WIDTH, 3 * WIDTH, spread=1.5)
    bias = tape.weight(f"bqkv{layer}", 3 * WIDTH)
    context = tape.op("Attention", source, weight, bias, domain=MICROSOFT, num_heads=HEADS, unidirectional=1)
    return exit_projection(tape, layer, context, source)
