"""Blocks in every form in which attention joins the residual stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir
from network_tape import MICROSOFT, WIDTH, Tape
from random_attention import branch
from random_decoys import mlp, tap


@dataclasses.dataclass
class Stream:
    """The residual stream, and its norm where a fused node made both."""

    value: ir.Value
    normed: ir.Value | None = None


def block(tape: Tape, layer: int, stream: Stream) -> Stream:
    """One layer of the network."""
    tape.scope = f"layer{layer}"
    return BLOCKS[tape.layers[layer].block](tape, layer, stream)


def _entry(tape: Tape, layer: int, stream: Stream) -> ir.Value:
    return tape.norm(stream.value, f"in{layer}") if stream.normed is None else stream.normed


def _exit(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """The attention branch with its gate."""
    result = branch(tape, layer, source)
    if "branch" in tape.layers[layer].taps:
        tape.output(result, f"branch_{layer}", ["b", "s", WIDTH])
    return tape.gate(layer, result)


def _rest(tape: Tape, layer: int, y: ir.Value) -> Stream:
    """Behind the attention of a pre-norm block: the second sublayer with its own norm."""
    y = tap(tape, layer, y)
    if tape.layers[layer].mlp == "none":
        return Stream(y)
    return Stream(tape.add(layer, y, mlp(tape, layer, tape.norm(y, f"mid{layer}"))))


def _pre_norm(tape: Tape, layer: int, stream: Stream) -> Stream:
    return _rest(tape, layer, tape.add(layer, stream.value, _exit(tape, layer, _entry(tape, layer, stream))))


def _post_norm(tape: Tape, layer: int, stream: Stream) -> Stream:
    x = stream.value
    y = tape.norm(tape.add(layer, x, _exit(tape, layer, x)), f"mid{layer}")
    y = tap(tape, layer, y)
    return Stream(tape.norm(tape.add(layer, y, mlp(tape, layer, y)), f"out{layer}"))


def _deep_norm(tape: Tape, layer: int, stream: Stream) -> Stream:
    """Post-norm with a weighted stream: norm(1.5 x + attention)."""
    x = stream.value
    kept = tape.op("Mul", x, tape.number(1.5))
    y = tape.norm(tape.add(layer, kept, _exit(tape, layer, x)), f"mid{layer}")
    y = tap(tape, layer, y)
    return Stream(tape.norm(tape.add(layer, tape.op("Mul", y, tape.number(1.5)), mlp(tape, layer, y)), f"out{layer}"))


def _parallel(tape: Tape, layer: int, stream: Stream) -> Stream:
    """GPT-J, Falcon: (attention + mlp) + x."""
    n = _entry(tape, layer, stream)
    both = tape.add(layer, _exit(tape, layer, n), mlp(tape, layer, n))
    return Stream(tap(tape, layer, tape.add(layer, both, stream.value)))


def _parallel_nested(tape: Tape, layer: int, stream: Stream) -> Stream:
    """Attention + (mlp + x)."""
    n = _entry(tape, layer, stream)
    attention = _exit(tape, layer, n)
    inner = tape.add(layer, mlp(tape, layer, n), stream.value)
    return Stream(tap(tape, layer, tape.add(layer, attention, inner)))


def _parallel_two_norms(tape: Tape, layer: int, stream: Stream) -> Stream:
    """GPT-NeoX: (x + attention(norm(x))) + mlp(another norm(x))."""
    attention = _exit(tape, layer, _entry(tape, layer, stream))
    other = mlp(tape, layer, tape.norm(stream.value, f"mid{layer}"))
    return Stream(tap(tape, layer, tape.add(layer, tape.add(layer, stream.value, attention), other)))


def _sum(tape: Tape, layer: int, stream: Stream) -> Stream:
    n = _entry(tape, layer, stream)
    operands = [stream.value, _exit(tape, layer, n), mlp(tape, layer, n)]
    if "swapped" in tape.layers[layer].extras:
        operands.reverse()
    return Stream(tap(tape, layer, tape.op("Sum", *operands)))


def _sandwich(tape: Tape, layer: int, stream: Stream) -> Stream:
    """Gemma-2: x + norm(attention(norm(x))). The gate stands behind the norm, whose shift goes with the branch."""
    result = tape.norm(branch(tape, layer, _entry(tape, layer, stream)), f"after{layer}")
    return _rest(tape, layer, tape.add(layer, stream.value, tape.gate(layer, result)))


def _scaled(tape: Tape, layer: int, stream: Stream) -> Stream:
    """Granite: x + 0.5 attention."""
    weighted = tape.op("Mul", _exit(tape, layer, _entry(tape, layer, stream)), tape.number(0.5))
    return _rest(tape, layer, tape.add(layer, stream.value, weighted))


def _layer_scale(tape: Tape, layer: int, stream: Stream) -> Stream:
    """CaiT: x + gamma * attention, gamma a weight of every channel."""
    exit_ = _exit(tape, layer, _entry(tape, layer, stream))
    weighted = tape.op("Mul", tape.weight(f"gamma{layer}", WIDTH, spread=4.0), exit_)
    return _rest(tape, layer, tape.add(layer, stream.value, weighted))


def _flat(tape: Tape, layer: int, stream: Stream) -> Stream:
    """The sum of [b * s, width] matrices."""
    branch_ = _exit(tape, layer, _entry(tape, layer, stream))
    rows = tape.constant([-1, WIDTH])
    flat = tape.add(layer, tape.op("Reshape", stream.value, rows), tape.op("Reshape", branch_, rows))
    return _rest(tape, layer, tape.unfold(flat, stream.value))


def _double_stream(tape: Tape, layer: int, stream: Stream) -> Stream:
    """The sum in double precision: both operands are cast."""
    wide, narrow = int(ir.DataType.DOUBLE), int(ir.DataType.FLOAT)
    branch_ = tape.op("Cast", _exit(tape, layer, _entry(tape, layer, stream)), to=wide)
    total = tape.add(layer, tape.op("Cast", stream.value, to=wide), branch_)
    return _rest(tape, layer, tape.op("Cast", total, to=narrow))


def _subtracted(tape: Tape, layer: int, stream: Stream) -> Stream:
    return _rest(tape, layer, tape.op("Sub", stream.value, _exit(tape, layer, _entry(tape, layer, stream))))


def _highway(tape: Tape, layer: int, stream: Stream) -> Stream:
    """Transform gates: t x + (1 - t) attention, with t computed from the stream."""
    n = _entry(tape, layer, stream)
    t = tape.op("Sigmoid", tape.op("MatMul", n, tape.weight(f"wt{layer}", WIDTH, WIDTH)))
    carried = tape.op("Mul", tape.op("Sub", tape.number(1.0), t), _exit(tape, layer, n))
    return _rest(tape, layer, tape.add(layer, tape.op("Mul", t, stream.value), carried))


def _fused_by_concat(tape: Tape, layer: int, stream: Stream) -> Stream:
    """Stream and attention are concatenated and projected: there is no sum to take the attention out of."""
    both = tape.op("Concat", stream.value, _exit(tape, layer, _entry(tape, layer, stream)), axis=-1)
    return _rest(tape, layer, tape.op("MatMul", both, tape.weight(f"wfuse{layer}", 2 * WIDTH, WIDTH)))


def _skip(
    tape: Tape, layer: int, x: ir.Value, result: ir.Value, name: str, *, bias: bool, total: bool
) -> tuple[ir.Value, ir.Value | None]:
    """Skip*LayerNormalization of stream and branch: the norm of their sum, and the sum where somebody needs it."""
    spec = tape.layers[layer]
    operands = [result, x] if "swapped" in spec.extras else [x, result]
    parameters: list[ir.Value | None] = [tape.weight(f"gain_{name}{layer}", WIDTH, spread=4.0)]
    op_type = "SkipSimplifiedLayerNormalization" if "simplified" in spec.extras else "SkipLayerNormalization"
    if op_type == "SkipLayerNormalization":
        parameters.append(tape.weight(f"shift_{name}{layer}", WIDTH, spread=2.0))
    if bias:
        vector = tape.weight(f"b{name}{layer}", WIDTH, spread=2.0)
        parameters.append(tape.gate(layer, vector) if name == "mid" else vector)
    outputs = tape.multi(
        op_type,
        *operands,
        *parameters,
        domain=MICROSOFT,
        wanted=(True, False, False, True) if total else (True,),
        epsilon=1e-5,
    )
    return outputs[0], outputs[-1] if total else None


def _skip_pre_norm(tape: Tape, layer: int, stream: Stream) -> Stream:
    """ORT's fusion of pre-norm blocks: both sums of the block carry the norm that follows them."""
    spec = tape.layers[layer]
    branch_ = _exit(tape, layer, _entry(tape, layer, stream))
    last = layer == len(tape.layers) - 1
    alone = spec.mlp == "none"
    normed, y = _skip(
        tape, layer, stream.value, branch_, "mid", bias="skip bias" in spec.extras, total=not (alone and last)
    )
    if alone:
        return Stream(normed if y is None else y, normed)
    assert y is not None
    result = mlp(tape, layer, normed)
    normed, total = _skip(tape, layer, y, result, "out", bias="mlp bias" in spec.extras, total=not last)
    return Stream(normed if total is None else total, normed)


def _skip_post_norm(tape: Tape, layer: int, stream: Stream) -> Stream:
    """ORT's fusion of BERT: the stream is the norm, the sum has no reader."""
    extras = tape.layers[layer].extras
    x = stream.value
    y, _ = _skip(tape, layer, x, _exit(tape, layer, x), "mid", bias="skip bias" in extras, total=False)
    y = tap(tape, layer, y)
    out, _ = _skip(tape, layer, y, mlp(tape, layer, y), "out", bias="mlp bias" in extras, total=False)
    return Stream(out)


BLOCKS: dict[str, Callable[[Tape, int, Stream], Stream]] = {
    "pre-norm": _pre_norm,
    "post-norm": _post_norm,
    "parallel": _parallel,
    "parallel nested": _parallel_nested,
    "parallel two norms": _parallel_two_norms,
    "sandwich": _sandwich,
    "scaled": _scaled,
    "layer scale": _layer_scale,
    "deep norm": _deep_norm,
    "sum": _sum,
    "flat": _flat,
    "half branch": _pre_norm,
    "double stream": _double_stream,
    "skip pre-norm": _skip_pre_norm,
    "skip post-norm": _skip_post_norm,
    "subtracted": _subtracted,
    "highway": _highway,
    "fused by Concat": _fused_by_concat,
}
