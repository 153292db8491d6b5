"""Small decoders as ONNX text, one block type each, with random weights: surgery is tested on them without torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

# 12 x 12 floats pass the 256 bytes below which onnx_ir keeps a tensor inside the graph file.
WIDTH, VOCABULARY, POSITIONS = 12, 11, 16

_NORM = """
  {out}_mean = ReduceMean <axes=[-1]> ({x})
  {out}_centred = Sub ({x}, {out}_mean)
  {out}_square = Mul ({out}_centred, {out}_centred)
  {out}_variance = ReduceMean <axes=[-1]> ({out}_square)
  {out}_safe = Add ({out}_variance, epsilon)
  {out}_deviation = Sqrt ({out}_safe)
  {out}_unit = Div ({out}_centred, {out}_deviation)
  {out}_scaled = Mul ({out}_unit, gain)
  {out} = Add ({out}_scaled, shift)
"""

_ATTENTION = """
  q{i} = MatMul ({x}, wq{i})
  knew{i} = MatMul ({x}, wk{i})
  vnew{i} = MatMul ({x}, wv{i})
  present_{i}_key = Concat <axis=1> (past_{i}_key, knew{i})
  present_{i}_value = Concat <axis=1> (past_{i}_value, vnew{i})
  kt{i} = Transpose <perm=[0, 2, 1]> (present_{i}_key)
  scores{i} = MatMul (q{i}, kt{i})
  scaled{i} = Mul (scores{i}, half)
  masked{i} = Add (scaled{i}, bias_mask)
  probs{i} = Softmax <axis=-1> (masked{i})
  context{i} = MatMul (probs{i}, present_{i}_value)
  projected{i} = MatMul (context{i}, wo{i})
  attention{i} = Add (projected{i}, bo{i})
"""

_MLP = """
  up{i} = MatMul ({x}, w1{i})
  active{i} = Relu (up{i})
  mlp{i} = MatMul (active{i}, w2{i})
"""


def _pre(i: int) -> str:
    return (
        _NORM.format(x=f"x{i}", out=f"n{i}")
        + _ATTENTION.format(i=i, x=f"n{i}")
        + f"  y{i} = Add (x{i}, attention{i})\n"
        + _NORM.format(x=f"y{i}", out=f"m{i}")
        + _MLP.format(i=i, x=f"m{i}")
        + f"  x{i + 1} = Add (y{i}, mlp{i})\n"
    )


def _post(i: int) -> str:
    return (
        _ATTENTION.format(i=i, x=f"x{i}")
        + f"  sum{i} = Add (attention{i}, x{i})\n"
        + _NORM.format(x=f"sum{i}", out=f"y{i}")
        + _MLP.format(i=i, x=f"y{i}")
        + f"  total{i} = Add (y{i}, mlp{i})\n"
        + _NORM.format(x=f"total{i}", out=f"x{i + 1}")
    )


def _parallel(i: int) -> str:
    return (
        _NORM.format(x=f"x{i}", out=f"n{i}")
        + _ATTENTION.format(i=i, x=f"n{i}")
        + _MLP.format(i=i, x=f"n{i}")
        + f"  both{i} = Add (attention{i}, mlp{i})\n"
        + f"  x{i + 1} = Add (both{i}, x{i})\n"
    )


def _sandwich(i: int) -> str:
    return (
        _NORM.format(x=f"x{i}", out=f"n{i}")
        + _ATTENTION.format(i=i, x=f"n{i}")
        + _NORM.format(x=f"attention{i}", out=f"after{i}")
        + f"  y{i} = Add (x{i}, after{i})\n"
        + _MLP.format(i=i, x=f"y{i}")
        + f"  x{i + 1} = Add (y{i}, mlp{i})\n"
    )


def _scaled(i: int) -> str:
    return _pre(i).replace(
        f"  y{i} = Add (x{i}, attention{i})\n",
        f"  weighted{i} = Mul (attention{i}, half)\n  y{i} = Add (x{i}, weighted{i})\n",
    )


def _decoys(i: int) -> str:
    """A pre-norm block with an MLP gated by a router: a softmax over a product with a weight, which is no attention."""
    return _pre(i).replace(
        f"  x{i + 1} = Add (y{i}, mlp{i})\n",
        f"""
  logits{i} = MatMul (m{i}, wr{i})
  route{i} = Softmax <axis=-1> (logits{i})
  routed{i} = Mul (mlp{i}, route{i})
  x{i + 1} = Add (y{i}, routed{i})
""",
    )


BLOCKS = {
    "pre-norm": _pre,
    "post-norm": _post,
    "parallel": _parallel,
    "sandwich": _sandwich,
    "scaled": _scaled,
    "decoys": _decoys,
}


def toy_decoder(block: str = "pre-norm", n_layers: int = 3, seed: int = 0) -> ir.Model:
    """A decoder whose past length is read from layer 0's key, for a learned position table and the causal mask.

    Inputs: tokens [b, s], attention_mask [b, p + s], past_i_key and past_i_value [b, p, 12]; outputs: logits [b, s, 11]
    and present_i_key, present_i_value.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {
        "embedding": rng.normal(size=(VOCABULARY, WIDTH)),
        "positions": rng.normal(size=(POSITIONS, WIDTH)),
        "head": rng.normal(size=(WIDTH, VOCABULARY)),
        "gain": rng.normal(size=WIDTH) + 1.0,
        "shift": rng.normal(size=WIDTH),
        "epsilon": np.array([1e-5]),
        "half": np.array([0.5]),
        "one": np.array([1.0]),
        "far": np.array([-1e9]),
    }
    for i in range(n_layers):
        for name in ("wq", "wk", "wv", "wo", "w1", "w2", "wr"):
            weights[f"{name}{i}"] = rng.normal(size=(WIDTH, WIDTH))
        weights[f"bo{i}"] = rng.normal(size=WIDTH)
    declared = ",\n  ".join(
        f"float[{','.join(map(str, array.shape))}] {name} = {{{', '.join(f'{x:.6f}' for x in array.ravel())}}}"
        if name != "far"
        else "float[1] far = {-1000000000.0}"
        for name, array in weights.items()
        if not name.startswith("wr") or block == "decoys"
    )
    caches = [f"past_{i}_{part}" for i in range(n_layers) for part in ("key", "value")]
    presents = [name.replace("past", "present") for name in caches]
    text = f"""
<ir_version: 8, opset_import: ["" : 17]>
decoder (
  int64[b,s] tokens, int64[b,t] attention_mask,
  {", ".join(f"float[b,p,{WIDTH}] {name}" for name in caches)}
) => (
  float[b,s,{VOCABULARY}] logits,
  {", ".join(f"float[b,t,{WIDTH}] {name}" for name in presents)}
) <
  {declared}
> {{
  past_shape = Shape (past_0_key)
  one_index = Constant <value_ints=[1]> ()
  zero_index = Constant <value_ints=[0]> ()
  past_length = Gather (past_shape, one_index)
  token_shape = Shape (tokens)
  new_length = Gather (token_shape, one_index)
  total_length = Add (past_length, new_length)
  here = Slice (positions, past_length, total_length, zero_index)
  embedded = Gather (embedding, tokens)
  x0 = Add (embedded, here)
  float_mask = Cast <to=1> (attention_mask)
  absent = Sub (one, float_mask)
  penalty = Mul (absent, far)
  bias_mask = Unsqueeze (penalty, one_index)
  {"".join(BLOCKS[block](i) for i in range(n_layers))}
  logits = MatMul (x{n_layers}, head)
}}
"""
    model = ir.from_onnx_text(text)
    # The text format has no expressions for lengths; exporters write them like this.
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    mask.shape = ir.Shape(["b", "p + s"])
    return model


def without_branches(model: ir.Model, layers: tuple[int, ...]) -> ir.Model:
    """The reference that needs no surgery: the same graph with the branches' last parameters set to zero.

    Projection and its bias are zeroed. Behind a norm the norm's shift still comes through, so this serves every block
    but the sandwich.
    """
    for layer in layers:
        for name in (f"wo{layer}", f"bo{layer}"):
            value = model.graph.initializers[name]
            assert value.const_value is not None
            value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    return model


def evaluate(
    model: ir.Model, seed: int = 1, past: int = 3, extra: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime on seeded inputs; caches are seeded by name, so a pruned graph gets the same ones.

    ``extra`` are further inputs.
    """
    rng = np.random.default_rng(seed)
    batch, step = 2, 4
    feed: dict[str, np.ndarray] = {
        "tokens": rng.integers(0, VOCABULARY, size=(batch, step)),
        "attention_mask": np.ones((batch, past + step), np.int64),
    }
    feed["attention_mask"][0, 0] = 0
    caches = {
        f"past_{i}_{part}": rng.normal(size=(batch, past, WIDTH)).astype(np.float32)
        for i in range(16)
        for part in ("key", "value")
    }
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    feed |= {spec.name: caches[spec.name] for spec in session.get_inputs() if spec.name in caches}
    feed |= extra or {}
    names = [spec.name for spec in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
