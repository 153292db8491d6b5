"""A decoder as ONNX Runtime's optimizer leaves GPT-2: packed QKV, keys and values in one cache tensor, fused norms."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph_passes import Heads, find_attention, heads_of, remove_attention

WIDTH, HEADS, VOCABULARY, N_LAYERS = 16, 2, 11, 3
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(range(N_LAYERS), size)]


def decoder(silent: tuple[int, ...] = ()) -> ir.Model:
    """The output projections of ``silent`` layers are zero, and their biases, which the norms add, too."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        values = rng.normal(size=shape).astype(np.float32) * 0.3
        if name in {f"{part}{layer}" for layer in silent for part in ("wo", "bo")}:
            values *= 0
        weights.append(numpy_helper.from_array(values, name))
        return name

    def node(op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> None:
        nodes.append(helper.make_node(op_type, inputs, outputs, domain=domain, **attributes))

    def skip_norm(x: str, branch: str, name: str, layer: int, normed: str, total: str) -> None:
        parts = [weight(f"{part}{name}{layer}", WIDTH) for part in ("g", "s")]
        bias = weight(f"b{name}{layer}", WIDTH)
        outputs = [normed, "", "", total]
        node("SkipLayerNormalization", [x, branch, *parts, bias], outputs, "com.microsoft", epsilon=1e-5)

    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCABULARY])]
    node("Gather", [weight("embedding", VOCABULARY, WIDTH), "input_ids"], ["x0"])
    node("LayerNormalization", ["x0", weight("g", WIDTH), weight("s", WIDTH)], ["n0"], axis=-1)
    for i in range(N_LAYERS):
        for values, name, length in ((inputs, f"past_{i}", "past"), (outputs, f"present_{i}", "total")):
            shape = [2, "batch", HEADS, length, WIDTH // HEADS]
            values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        packed = [f"n{i}", weight(f"wqkv{i}", WIDTH, 3 * WIDTH), weight(f"bqkv{i}", 3 * WIDTH), "", f"past_{i}"]
        node("Attention", packed, [f"a{i}", f"present_{i}"], "com.microsoft", num_heads=HEADS, unidirectional=1)
        node("MatMul", [f"a{i}", weight(f"wo{i}", WIDTH, WIDTH)], [f"o{i}"])
        skip_norm(f"x{i}", f"o{i}", "o", i, f"m{i}", f"y{i}")
        node("MatMul", [f"m{i}", weight(f"w1{i}", WIDTH, WIDTH)], [f"u{i}"])
        node("Relu", [f"u{i}"], [f"r{i}"])
        node("MatMul", [f"r{i}", weight(f"w2{i}", WIDTH, WIDTH)], [f"p{i}"])
        skip_norm(f"y{i}", f"p{i}", "p", i, f"n{i + 1}", f"x{i + 1}")
    node("MatMul", [f"n{N_LAYERS}", weight("head", WIDTH, VOCABULARY)], ["logits"])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def run(model: ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feed = {"input_ids": rng.integers(0, VOCABULARY, size=(2, 4))}
    feed |= {f"past_{i}": rng.normal(size=(2, 2, HEADS, 3, WIDTH // HEADS)).astype(np.float32) for i in range(N_LAYERS)}
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    wanted = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: v for k, v in feed.items() if k in wanted}), strict=True))


def test_one_packed_tensor_is_the_cache() -> None:
    for site in find_attention(decoder()).sites:
        assert [value.name for value in site.cache.past] == [f"past_{site.layer}"]
        assert [value.name for value in site.cache.present] == [f"present_{site.layer}"]
        assert heads_of(site) == Heads(HEADS, HEADS, WIDTH // HEADS)
        assert site.residual.bias_index == 4


@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_the_bias_that_the_norm_adds_goes_and_no_norm_is_left_over(layers: tuple[int, ...]) -> None:
    model = decoder()
    remove_attention(model, layers, kv_names="keep")
    expected, result = run(decoder(layers)), run(model)
    assert set(result) == set(expected) - {f"present_{layer}" for layer in layers}
    for name, array in result.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    # The norm in front of a removed sublayer takes over the scale of the one behind it.
    operators = [node.op_type for node in model.graph]
    assert operators.count("SkipLayerNormalization") == 2 * N_LAYERS - len(layers)
    assert operators.count("LayerNormalization") == 1
    # Packed weight and bias, output projection and its bias, scale and shift.
    assert len(model.graph.initializers) == len(decoder().graph.initializers) - 6 * len(layers)
