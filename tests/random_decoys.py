"""What stands beside attention: softmaxes that are none, attention that is no layer, readers of the stream."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from network_tape import WIDTH, Tape

EXPERTS = 3


def mlp(tape: Tape, layer: int, m: ir.Value) -> ir.Value:
    """The second sublayer; "none" is a weak one where the block cannot do without."""
    kind = tape.layers[layer].mlp
    up = tape.op("MatMul", m, tape.weight(f"w1_{layer}", WIDTH, WIDTH))
    plain = tape.op("MatMul", tape.op("Relu", up), tape.weight(f"w2_{layer}", WIDTH, WIDTH))
    return MLPS[kind](tape, layer, m, plain)


def _router(tape: Tape, layer: int, m: ir.Value, plain: ir.Value) -> ir.Value:
    """Softmax over channels of a projection, times the MLP."""
    logits = tape.op("MatMul", m, tape.weight(f"wr{layer}", WIDTH, WIDTH))
    return tape.op("Mul", plain, tape.op("Softmax", logits, axis=-1))


def _experts(tape: Tape, layer: int, m: ir.Value) -> ir.Value:
    """[b, s, experts, width]."""
    wide = tape.op("MatMul", m, tape.weight(f"we{layer}", WIDTH, EXPERTS * WIDTH))
    return tape.op("Reshape", tape.op("Relu", wide), tape.constant([0, 0, EXPERTS, WIDTH]))


def _mix(tape: Tape, probabilities: ir.Value, experts: ir.Value) -> ir.Value:
    """Probabilities [b, s, experts] times the experts' results: a product of two activations."""
    row = tape.op("Unsqueeze", probabilities, tape.constant([2]))
    return tape.op("Squeeze", tape.op("MatMul", row, experts), tape.constant([2]))


def _mixture(tape: Tape, layer: int, m: ir.Value, plain: ir.Value) -> ir.Value:
    logits = tape.op("MatMul", m, tape.weight(f"wr{layer}", WIDTH, EXPERTS))
    return tape.op("Add", plain, _mix(tape, tape.op("Softmax", logits, axis=-1), _experts(tape, layer, m)))


def _cosine_router(tape: Tape, layer: int, m: ir.Value, plain: ir.Value) -> ir.Value:
    """Swin-MoE: the router's weight is normalized in the graph, so that it looks like an activation."""
    weight = tape.weight(f"wr{layer}", WIDTH, EXPERTS)
    length = tape.op("Sqrt", tape.op("ReduceSum", tape.op("Mul", weight, weight), tape.constant([0])))
    logits = tape.op("MatMul", m, tape.op("Div", weight, length))
    return tape.op("Add", plain, _mix(tape, tape.op("Softmax", logits, axis=-1), _experts(tape, layer, m)))


def _memory(tape: Tape, layer: int, m: ir.Value, plain: ir.Value) -> ir.Value:
    """Keys and values that are weights: an MLP with a softmax for its activation."""
    scores = tape.op("MatMul", m, tape.weight(f"mk{layer}", WIDTH, WIDTH))
    found = tape.op("MatMul", tape.op("Softmax", scores, axis=-1), tape.weight(f"mv{layer}", WIDTH, WIDTH))
    return tape.op("Add", plain, found)


def _linear_attention(tape: Tape, layer: int, m: ir.Value, plain: ir.Value) -> ir.Value:
    """Q (K^T V) without a softmax, over the new tokens."""
    q, k, v = (tape.op("MatMul", m, tape.weight(f"l{name}{layer}", WIDTH, WIDTH)) for name in "qkv")
    state = tape.op("MatMul", tape.op("Transpose", tape.op("Relu", k), perm=[0, 2, 1]), v)
    return tape.op("Add", plain, tape.op("MatMul", tape.op("Relu", q), tape.op("Mul", state, tape.number(0.1))))


def _cross_attention(tape: Tape, layer: int, m: ir.Value) -> ir.Value:
    """Attention to a memory that is an input of the graph, as in a decoder of an encoder: no layer of its own."""
    memory = tape.input("memory", ir.DataType.FLOAT, ["b", "m", WIDTH])
    q, k, v = (
        tape.op("MatMul", source, tape.weight(f"c{name}{layer}", WIDTH, WIDTH))
        for name, source in (("q", m), ("k", memory), ("v", memory))
    )
    scores = tape.op("MatMul", q, tape.op("Transpose", k, perm=[0, 2, 1]))
    found = tape.op("MatMul", tape.op("Softmax", scores, axis=-1), v)
    return tape.op("MatMul", found, tape.weight(f"co{layer}", WIDTH, WIDTH))


MLPS: dict[str, Callable[[Tape, int, ir.Value, ir.Value], ir.Value]] = {
    "plain": lambda tape, layer, m, plain: plain,
    "none": lambda tape, layer, m, plain: plain,
    "router": _router,
    "mixture": _mixture,
    "cosine router": _cosine_router,
    "memory": _memory,
    "linear attention": _linear_attention,
    "cross-attention": lambda tape, layer, m, plain: _cross_attention(tape, layer, m),
}


def tap(tape: Tape, layer: int, y: ir.Value) -> ir.Value:
    """Others that read the stream behind the attention."""
    taps = tape.layers[layer].taps
    if "stream" in taps:
        tape.output(y, f"stream_{layer}", ["b", "s", WIDTH])
    if "auxiliary head" in taps:
        head = tape.op("MatMul", y, tape.weight(f"aux{layer}", WIDTH, 5))
        tape.output(head, f"auxiliary_{layer}", ["b", "s", 5])
    if "dead" in taps:
        tape.op("Relu", y)
    if "If" in taps:
        y = _conditional(tape, y)
    if "Loop" in taps:
        y = _repeated(tape, y)
    if "cache statistics" in taps and f"past_{layer}_key" in tape.inputs:
        past = tape.inputs[f"past_{layer}_key"]
        tape.output(tape.op("ReduceMean", past, keepdims=0), f"statistics_{layer}", [])
    return y


def _conditional(tape: Tape, y: ir.Value) -> ir.Value:
    """An If whose branches capture the stream."""
    flag = tape.input("flag", ir.DataType.BOOL, [])
    branches: dict[str, ir.Graph] = {}
    for name, factor in (("then_branch", 0.5), ("else_branch", 2.0)):
        inner = ir.node("Mul", [y, tape.number(factor)], outputs=[ir.Value(name=f"{tape.scope}/{name}/product")])
        branches[name] = ir.Graph([], inner.outputs, nodes=[inner], name=f"{tape.scope}/{name}")
    return tape.op("If", flag, **branches)


def _repeated(tape: Tape, y: ir.Value) -> ir.Value:
    """A Loop that adds the captured stream to its state, twice."""
    prefix = f"{tape.scope}/body"
    number = ir.Value(name=f"{prefix}/number", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    going = ir.Value(name=f"{prefix}/going", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    state = ir.Value(name=f"{prefix}/state", type=ir.TensorType(ir.DataType.FLOAT))
    weak = ir.node("Mul", [y, tape.number(0.5)], outputs=[ir.Value(name=f"{prefix}/weak")])
    total = ir.node("Add", [state, weak.outputs[0]], outputs=[ir.Value(name=f"{prefix}/total")])
    still = ir.node("Identity", [going], outputs=[ir.Value(name=f"{prefix}/still")])
    nodes = [weak, total, still]
    body = ir.Graph([number, going, state], [still.outputs[0], total.outputs[0]], nodes=nodes, name=prefix)
    return tape.op("Loop", tape.constant(2), tape.constant(True, bool), y, body=body)
