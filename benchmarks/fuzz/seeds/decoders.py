"""Two-layer decoders as ONNX graphs with KV cache: plain operators, model-local functions, fused and packed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.fuzz.seeds.checkpoints import pattern

if TYPE_CHECKING:
    import onnx

LAYERS, _WIDTH, _HEADS, _SIZE, _WORDS = 2, 8, 2, 4, 11

_CORE = """
  s{i} = MatMul (q{i}t, k{i}t)
  scaled{i} = Mul (s{i}, half)
  masked{i} = Add (scaled{i}, mask)
  p{i} = Softmax <axis=-1> (masked{i})
  c{i} = MatMul (p{i}, present_{i}_value)
"""
_PLAIN = """
  n{i} = LayerNormalization <axis=-1> (x{i}, gain, shift)
  q{i} = MatMul (n{i}, wq{i})
  k{i} = MatMul (n{i}, wk{i})
  v{i} = MatMul (n{i}, wv{i})
  q{i}r = Reshape (q{i}, heads)
  k{i}r = Reshape (k{i}, heads)
  v{i}r = Reshape (v{i}, heads)
  q{i}t = Transpose <perm=[0, 2, 1, 3]> (q{i}r)
  k{i}n = Transpose <perm=[0, 2, 1, 3]> (k{i}r)
  v{i}n = Transpose <perm=[0, 2, 1, 3]> (v{i}r)
  present_{i}_key = Concat <axis=2> (past_{i}_key, k{i}n)
  present_{i}_value = Concat <axis=2> (past_{i}_value, v{i}n)
  k{i}t = Transpose <perm=[0, 1, 3, 2]> (present_{i}_key)
{core}
  c{i}t = Transpose <perm=[0, 2, 1, 3]> (c{i})
  c{i}r = Reshape (c{i}t, flat)
  o{i} = MatMul (c{i}r, wo{i})
  y{i} = Add (x{i}, o{i})
"""
_FUSED = """
  n{i} = SimplifiedLayerNormalization <axis=-1, epsilon=0.00001> (x{i}, gain)
  q{i} = com.microsoft.MatMulNBits <K=8, N=8, bits=4, block_size=16> (n{i}, bq{i}, sq{i})
  k{i} = MatMul (n{i}, wk{i})
  v{i} = MatMul (n{i}, wv{i})
  c{i}, present_{i}_key, present_{i}_value = com.microsoft.GroupQueryAttention <num_heads=2, kv_num_heads=2>
    (q{i}, k{i}, v{i}, past_{i}_key, past_{i}_value, seqlens, total)
  o{i} = MatMul (c{i}, wo{i})
  y{i} = Add (x{i}, o{i})
"""
_MLP = """
  u{i} = MatMul (y{i}, w1{i})
  a{i} = Relu (u{i})
  d{i} = MatMul (a{i}, w2{i})
  x{j} = Add (y{i}, d{i})
"""
_BEGIN = """
  shape = Shape (past_0_key)
  two = Constant <value_ints=[2]> ()
  one = Constant <value_ints=[1]> ()
  zero = Constant <value_ints=[0]> ()
  past = Gather (shape, two)
  tokens_shape = Shape (input_ids)
  step = Gather (tokens_shape, one)
  end = Add (past, step)
  here = Slice (positions, past, end, zero)
  embedded = Gather (embedding, input_ids)
  x0 = Add (embedded, here)
  present_mask = Cast <to=1> (attention_mask)
  absent = Sub (unit, present_mask)
  penalty = Mul (absent, far)
  axes = Constant <value_ints=[1, 2]> ()
  padding = Unsqueeze (penalty, axes)
  order = CumSum (attention_mask, one)
  own = Slice (order, past, end, one)
  own_column = Unsqueeze (own, two)
  order_row = Unsqueeze (order, one)
  seen = LessOrEqual (order_row, own_column)
  seen_number = Cast <to=1> (seen)
  unseen = Sub (unit, seen_number)
  later = Mul (unseen, far)
  causal = Unsqueeze (later, one)
  mask = Add (padding, causal)
  lengths = ReduceSum <keepdims=0> (attention_mask, one)
  lengths_less = Sub (lengths, one)
  seqlens = Cast <to=6> (lengths_less)
  total = Cast <to=6> (end)
"""
_FUNCTION = """
<domain: "local", opset_import: ["" : 17]>
core (q, k, v, half, mask) => (c)
{
  s = MatMul (q, k)
  scaled = Mul (s, half)
  masked = Add (scaled, mask)
  p = Softmax <axis=-1> (masked)
  c = MatMul (p, v)
}
"""


def _weights(fused: bool) -> dict[str, np.ndarray]:
    found = {
        "embedding": pattern(_WORDS, _WIDTH),
        "positions": pattern(64, _WIDTH, start=3),
        "head": pattern(_WIDTH, _WORDS, start=5),
        "gain": pattern(_WIDTH, start=7),
        "shift": pattern(_WIDTH, start=9),
        "half": np.array([0.5], np.float32),
        "unit": np.array([1.0], np.float32),
        "far": np.array([-1e4], np.float32),
        "heads": np.array([0, 0, _HEADS, _SIZE]),
        "flat": np.array([0, 0, _WIDTH]),
    }
    for i in range(LAYERS):
        for place, name in enumerate(("wq", "wk", "wv", "wo", "w1", "w2")):
            found[f"{name}{i}"] = pattern(_WIDTH, _WIDTH, start=7 * i + place)
        if fused:
            found[f"bq{i}"] = (np.arange(_WIDTH * 8) % 251).astype(np.uint8).reshape(_WIDTH, 1, 8)
            found[f"sq{i}"] = pattern(_WIDTH, start=i + 1)
    return found


def decoder(form: str) -> onnx.ModelProto:
    """A decoder; ``form`` is plain, functions or fused. Its weights lie inside."""
    import onnx

    calls = "\n  c{i} = local.core (q{i}t, k{i}t, present_{i}_value, half, mask)\n"
    block = _FUSED if form == "fused" else _PLAIN.replace("{core}", calls if form == "functions" else _CORE)
    caches = [f"{i}_{part}" for i in range(LAYERS) for part in ("key", "value")]
    cache = f"float[b,{_HEADS},{{}},{_SIZE}]"
    text = f"""
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "local" : 1]>
decoder (
  int64[b,s] input_ids, int64[b,t] attention_mask,
  {", ".join(f"{cache.format('p')} past_{name}" for name in caches)}
) => (
  float[b,s,{_WORDS}] logits, {", ".join(f"{cache.format('t')} present_{name}" for name in caches)}
) {{
  {_BEGIN}
  {"".join((block + _MLP).format(i=i, j=i + 1) for i in range(LAYERS))}
  logits = MatMul (x{LAYERS}, head)
}}
{_FUNCTION if form == "functions" else ""}
"""
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    for name, array in _weights(form == "fused").items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    # The text format has no sums of lengths; exporters write them like this.
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "p + s"
    return model
