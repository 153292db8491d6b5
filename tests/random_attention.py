"""Every form in which an attention branch appears in a graph, from the normed stream to the branch's exit."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from fused_attention import GROUP_QUERY_SIZE, attention_op, group_query_op, microsoft_attention, multi_head_op
from network_tape import HEADS, POSITIONS, SIZE, WIDTH, Tape
from random_parts import cached, exit_projection, mask, past_length, project, queries_keys_values

KV_HEADS = {"grouped-query": 2, "multi-query": 1, "Attention": 2, "GroupQueryAttention": 1}


def branch(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """Attention with its output projection."""
    return FORMS[tape.layers[layer].attention](tape, layer, source)


def cache_inputs(tape: Tape, layer: int) -> dict[str, list[int | str]]:
    """Names and shapes of a layer's past tensors."""
    form = tape.layers[layer].attention
    if not tape.network.cache or form == "com.microsoft.Attention" or _borrows(tape, layer):
        return {}
    shape: list[int | str]
    if form in {"single", "heads in Concat", "heads in Add"}:
        shape = ["b", "p", WIDTH]
    elif form == "GroupQueryAttention":
        shape = ["b", 1, "p", GROUP_QUERY_SIZE]
    else:
        shape = ["b", KV_HEADS.get(form, HEADS), "p", SIZE]
    parts = ("key", "key2", "value") if form.startswith("differential") else ("key", "value")
    return {f"past_{layer}_{part}": shape for part in parts}


def _borrows(tape: Tape, layer: int) -> bool:
    """Whether a layer reads the keys and values of the one before it, which must hold them in the same form."""
    spec, before = tape.layers[layer], tape.layers[layer - 1]
    decomposed = {"single", "multi-head", "grouped-query", "multi-query"}
    return (
        layer > 0
        and "borrowed cache" in spec.extras
        and spec.attention == before.attention
        and spec.attention in decomposed
    )


def _core(tape: Tape, layer: int, q: ir.Value, key: ir.Value, source: ir.Value, rank: int) -> ir.Value:
    """Probabilities from queries and keys, which are transposed here."""
    flags = tape.layers[layer].scores
    order = [0, 2, 1] if rank == 3 else [0, 1, 3, 2]
    scores = tape.op("MatMul", q, tape.op("Transpose", key, perm=order))
    if "scale" in flags:
        scores = tape.op("Mul", scores, tape.number(0.5))
    if "cap" in flags:
        scores = tape.op("Div", scores, tape.number(3.0))
        scores = tape.op("Mul", tape.op("Tanh", scores), tape.number(3.0))
    if "mask" in flags:
        scores = tape.op("Add", scores, mask(tape, layer, source, rank))
    if "sink" in flags:
        rows = tape.op("Slice", tape.op("Shape", scores), tape.constant([0]), tape.constant([rank - 1]))
        shape = tape.op("Concat", rows, tape.constant([1]), axis=0)
        sink = tape.op("Expand", tape.weight(f"sink{layer}", *[1] * rank), shape)
        probabilities = tape.op("Softmax", tape.op("Concat", scores, sink, axis=-1), axis=-1)
        probabilities = tape.op("Slice", probabilities, tape.constant([0]), tape.constant([-1]), tape.constant([-1]))
    else:
        probabilities = tape.op("Softmax", scores, axis=-1)
    if "probabilities" in tape.layers[layer].taps:
        name = f"probabilities_{layer}_{len(tape.outputs)}"
        tape.output(probabilities, name, [f"{name}_{axis}" for axis in range(rank)])
    if "dead" in tape.layers[layer].taps:
        tape.op("Relu", probabilities)
    return probabilities


def _single(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    q, k, v = _keys(tape, layer, source, lambda value, _: value, WIDTH, axis=1)
    context = tape.op("MatMul", _core(tape, layer, q, k, source, 3), v)
    return exit_projection(tape, layer, context, source)


def _keys(
    tape: Tape,
    layer: int,
    source: ir.Value,
    lay_out: Callable[[ir.Value, str], ir.Value],
    kv_width: int,
    axis: int,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries, and keys and values with their past: the layer's own or those of the layer before."""
    if _borrows(tape, layer):
        tape.owner[layer] = tape.owner[layer - 1]
        tape.keys_values[layer] = tape.keys_values[layer - 1]
        tape.queries[layer] = project(tape, layer, source, "wq", WIDTH)
        return lay_out(tape.queries[layer], "q"), *tape.keys_values[layer]
    q, k, v = queries_keys_values(tape, layer, source, (WIDTH, kv_width, kv_width))
    key = cached(tape, layer, "key", lay_out(k, "k"), axis)
    value = cached(tape, layer, "value", lay_out(v, "v"), axis)
    tape.keys_values[layer] = key, value
    return lay_out(q, "q"), key, value


def _heads(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """Multi-head, grouped-query and multi-query attention on [b, heads, s, size]."""
    kv_heads = KV_HEADS.get(tape.layers[layer].attention, HEADS)
    q, key, value = _keys(
        tape, layer, source, lambda value, part: _by_head(tape, layer, value, part), kv_heads * SIZE, axis=2
    )
    if 1 < kv_heads < HEADS:
        key, value = (_repeat(tape, tensor, kv_heads) for tensor in (key, value))
    probabilities = _core(tape, layer, q, key, source, 4)
    return exit_projection(tape, layer, _merge(tape, tape.op("MatMul", probabilities, value), source), source)


def _by_head(tape: Tape, layer: int, value: ir.Value, part: str) -> ir.Value:
    split = tape.op("Reshape", value, tape.constant([0, 0, -1, SIZE]))
    if "qk norm" in tape.layers[layer].extras and part != "v":
        split = tape.norm(split, f"{part}{layer}", SIZE)
    split = tape.op("Transpose", split, perm=[0, 2, 1, 3])
    if "rope" not in tape.network.extras or part == "v":
        return split
    cos, sin = (_rope_table(tape, layer, value, name) for name in ("cos", "sin"))
    low = tape.op("Slice", split, tape.constant([0]), tape.constant([2]), tape.constant([3]))
    high = tape.op("Slice", split, tape.constant([2]), tape.constant([4]), tape.constant([3]))
    rotated = tape.op("Concat", tape.op("Neg", high), low, axis=-1)
    return tape.op("Add", tape.op("Mul", split, cos), tape.op("Mul", rotated, sin))


def _rope_table(tape: Tape, layer: int, source: ir.Value, name: str) -> ir.Value:
    def make() -> ir.Value:
        past = past_length(tape, layer)
        rows = tape.op(
            "Slice",
            tape.weight(f"{name}_table", POSITIONS, SIZE, spread=4.0),
            past,
            tape.op("Add", past, tape.step(source)),
            tape.constant([0]),
        )
        # Exporters give the table the type of the first layer's queries, by a node that reads them.
        return tape.op("CastLike", rows, source)

    return tape.once(f"rope {name}", make)


def _repeat(tape: Tape, value: ir.Value, kv_heads: int) -> ir.Value:
    wide = tape.op(
        "Expand", tape.op("Unsqueeze", value, tape.constant([2])), tape.constant([1, 1, HEADS // kv_heads, 1, 1])
    )
    return tape.op("Reshape", wide, tape.op("Concat", tape.length(value, 0), tape.constant([HEADS, -1, SIZE]), axis=0))


def _merge(tape: Tape, context: ir.Value, source: ir.Value) -> ir.Value:
    rows = tape.op("Transpose", context, perm=[0, 2, 1, 3])
    if tape.network.lengths == "constant":
        return tape.op("Reshape", rows, tape.constant([0, 0, WIDTH]))
    return tape.unfold(rows, source)


def _differential(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """Two cores on the same values; their difference is taken of the results or of the probabilities."""
    q, k, v = queries_keys_values(tape, layer, source, (WIDTH, WIDTH, WIDTH))
    q2, k2 = (project(tape, layer, source, name, WIDTH) for name in ("wq2", "wk2"))
    queries = [_by_head(tape, layer, x, "q") for x in (q, q2)]
    keys = [cached(tape, layer, part, _by_head(tape, layer, x, "k"), 2) for part, x in (("key", k), ("key2", k2))]
    value = cached(tape, layer, "value", _by_head(tape, layer, v, "v"), 2)
    first, second = (_core(tape, layer, *pair, source, 4) for pair in zip(queries, keys, strict=True))
    if tape.layers[layer].attention == "differential probabilities":
        context = tape.op("MatMul", tape.op("Sub", first, tape.op("Mul", second, tape.number(0.5))), value)
    else:
        second = tape.op("Mul", tape.op("MatMul", second, value), tape.number(0.5))
        context = tape.op("Sub", tape.op("MatMul", first, value), second)
    return exit_projection(tape, layer, _merge(tape, context, source), source)


def _split_heads(tape: Tape, layer: int, source: ir.Value) -> ir.Value:
    """One core for each head, joined by Concat or by adding each head's own projection."""
    q, k, v = queries_keys_values(tape, layer, source, (WIDTH, WIDTH, WIDTH))
    key, value = cached(tape, layer, "key", k, 1), cached(tape, layer, "value", v, 1)
    half = tape.constant([WIDTH // 2, WIDTH // 2])
    split = [tape.multi("Split", tensor, half, wanted=(True, True), axis=-1) for tensor in (q, key, value)]
    contexts = [
        tape.op("MatMul", _core(tape, layer, q_head, key_head, source, 3), value_head)
        for q_head, key_head, value_head in zip(*split, strict=True)
    ]
    if tape.layers[layer].attention == "heads in Concat":
        return exit_projection(tape, layer, tape.op("Concat", *contexts, axis=-1), source)
    return tape.op(
        "Add", *(exit_projection(tape, layer, context, source, f"_{index}") for index, context in enumerate(contexts))
    )


FORMS: dict[str, Callable[[Tape, int, ir.Value], ir.Value]] = {
    "single": _single,
    "multi-head": _heads,
    "grouped-query": _heads,
    "multi-query": _heads,
    "differential": _differential,
    "differential probabilities": _differential,
    "heads in Concat": _split_heads,
    "heads in Add": _split_heads,
    "Attention": attention_op,
    "MultiHeadAttention": multi_head_op,
    "GroupQueryAttention": group_query_op,
    "com.microsoft.Attention": microsoft_attention,
}
