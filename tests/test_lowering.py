"""Laws of lowering: the same numbers in ONNX Runtime, the same signature, and no hurry with pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from lowering_cases import CASES, MICROSOFT, Case
from network_tape import Layer, Network, flags
from random_networks import build, feed

from gatenorm_export.building import find_flavour
from gatenorm_export.errors import MissingPartError, RefusedError
from gatenorm_export.precision import OPERATORS, prepare_graph, takes
from graph_passes import LOWERINGS, LoweringRefused, find_attention, lower_operators, remove_attention
from graph_passes.operators import operator_of

LOWERED = {("", "Attention"), ("", "RotaryEmbedding"), ("", "RMSNormalization"), ("", "SimplifiedLayerNormalization")}


def nothing_fused(node: ir.Node) -> str | None:
    """What a runtime takes that has none of the operators with a lowering."""
    return "it is fused" if operator_of(node) in LOWERINGS else None


def session(model: ir.Model | onnx.ModelProto) -> onnxruntime.InferenceSession:
    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers(model: ir.Model | onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    opened = session(model)
    names = [output.name for output in opened.get_outputs()]
    wanted = {entry.name for entry in opened.get_inputs()}
    return dict(zip(names, opened.run(names, {n: a for n, a in feeds.items() if n in wanted}), strict=True))


def close(found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    span = max(float(np.ptp(expected)), 1.0) if expected.size else 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * span, err_msg=name)


def as_bytes(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_lowered_node_computes_the_same(case: Case) -> None:
    proto = case.proto()
    expected = answers(proto, case.feeds())
    model = ir.from_proto(proto)
    before = as_bytes(model)
    lowered = lower_operators(model, nothing_fused)
    assert as_bytes(model) == before, "the given model was changed"
    assert sum(lowered.counts.values()) == 1
    found = answers(lowered.model, case.feeds())
    assert list(found) == list(expected)
    for name, array in expected.items():
        close(found[name], array, name)


def test_every_lowering_has_a_case() -> None:
    cased = {(case.domain, case.operator) for case in CASES}
    # Both are SimplifiedLayerNormalization and RMSNormalization by another domain.
    aliases = {(MICROSOFT, "SimplifiedLayerNormalization"), (MICROSOFT, "RMSNormalization")}
    assert set(LOWERINGS) - cased <= aliases


NETWORKS = {
    "ai.onnx": Network((Layer(attention="Attention"), Layer(attention="Attention")), cache=True),
    "ai.onnx, mask": Network(
        (Layer(attention="Attention", scores=flags("scale", "mask")), Layer(attention="Attention")), cache=True
    ),
    "multi head": Network((Layer(attention="MultiHeadAttention"), Layer(attention="MultiHeadAttention")), cache=True),
    "group query": Network(
        (Layer(attention="GroupQueryAttention"), Layer(attention="GroupQueryAttention", extras=flags("packed"))),
        cache=True,
    ),
    "packed": Network((Layer(attention="com.microsoft.Attention"), Layer(attention="com.microsoft.Attention"))),
    "skip norms": Network(
        (
            Layer(block="skip pre-norm", extras=flags("skip bias", "mlp bias")),
            Layer(block="skip post-norm", attention="MultiHeadAttention", extras=flags("skip bias", "mlp bias")),
        ),
        cache=True,
    ),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_laws_of_whole_networks(network: Network) -> None:
    built = build(network).model
    feeds = feed(built, network)
    expected = answers(built, feeds)
    signature = [(v.name, v.dtype, v.shape) for v in (*built.graph.inputs, *built.graph.outputs)]
    lowered = lower_operators(built, nothing_fused).model
    assert [(v.name, v.dtype, v.shape) for v in (*lowered.graph.inputs, *lowered.graph.outputs)] == signature
    found = answers(lowered, feeds)
    for name, array in expected.items():
        close(found[name], array, name)
    # Twice is once.
    again = lower_operators(lowered, nothing_fused)
    assert not again.counts
    assert as_bytes(again.model) == as_bytes(lowered)
    # Every sublayer is still found, with its cache, and pruning may come before or after.
    assert [(s.layer, names(s.cache.past), names(s.cache.present)) for s in find_attention(lowered).sites] == [
        (s.layer, names(s.cache.past), names(s.cache.present)) for s in find_attention(built).sites
    ]
    for layers in ((0,), (1,), (0, 1)):
        first, last = build(network).model, lower_operators(built, nothing_fused).model
        remove_attention(first, layers, kv_names="keep")
        remove_attention(last, layers, kv_names="keep")
        pruned_first = answers(lower_operators(first, nothing_fused).model, feeds)
        pruned_last = answers(last, feeds)
        assert list(pruned_first) == list(pruned_last)
        for name, array in pruned_first.items():
            close(pruned_last[name], array, f"{name}, layers {layers}")


def names(values: tuple[ir.Value, ...]) -> list[str | None]:
    return [value.name for value in values]


def graph(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def test_an_operator_that_nobody_knows_is_refused_by_name_and_nothing_is_changed() -> None:
    model = graph("""
<ir_version: 8, opset_import: ["" : 18, "my.own" : 1]>
g (float[b,4] x) => (float[b,4] y) { [strange] y = my.own.Mystery (x) }
""")
    before = as_bytes(model)
    with pytest.raises(
        LoweringRefused, match=r"node strange \(my\.own\.Mystery\): tensorrt takes no operator of my\.own"
    ):
        lower_operators(model, lambda node: takes("tensorrt", node))
    assert as_bytes(model) == before


def test_a_form_that_is_not_known_is_refused_with_the_reason() -> None:
    case = next(case for case in CASES if case.name == "group query window")
    proto = case.proto()
    attribute = proto.graph.node[0].attribute.add()
    attribute.CopyFrom(onnx.helper.make_attribute("sliding_window_cache", 1))
    with pytest.raises(
        LoweringRefused, match=r"the_node \(com\.microsoft\.GroupQueryAttention\).*its cache is a window"
    ):
        lower_operators(ir.from_proto(proto), lambda node: takes("tensorrt", node))


@pytest.mark.parametrize("flavour", OPERATORS)
@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear"])
def test_unsigned_numbers_and_zero_points_are_refused(flavour: str, operator: str) -> None:
    kinds = ("float[b]", "uint8[b]") if operator == "QuantizeLinear" else ("uint8[b]", "float[b]")
    model = graph(f"""
<ir_version: 8, opset_import: ["" : 18]>
g ({kinds[0]} x) => ({kinds[1]} y) <float s = {{0.5}}, uint8 z = {{3}}> {{ y = {operator} (x, s, z) }}
""")
    (node,) = model.graph
    assert "signed" in (takes(flavour, node) or "")


def test_symmetric_4_bit_weights_stay_4_bits_where_asked() -> None:
    for name, kept in (("4 bits", True), ("4 bits, eights", True), ("4 bits, zero points", False)):
        case = next(case for case in CASES if case.name == f"packed weight, {name}")
        lowered = lower_operators(ir.from_proto(case.proto()), nothing_fused, int4=True)
        types = {value.const_value.dtype for value in lowered.model.graph.initializers.values() if value.const_value}
        assert (ir.DataType.INT4 in types) == kept
        assert any("int4" in into for _, into in lowered.counts) == kept
        found = answers(lowered.model, case.feeds())
        for result, array in answers(case.proto(), case.feeds()).items():
            close(found[result], array, name)


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return find_flavour("tensorrt-rtx").module()
    except MissingPartError as error:
        pytest.skip(str(error))


def test_the_table_is_what_the_parser_says(rtx: Any) -> None:
    logger = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(logger).create_network(0)
    parser = rtx.OnnxParser(network, logger)
    assert [name for name in sorted(OPERATORS["tensorrt-rtx"]) if not parser.supports_operator(name)] == []


ONE_NODE = {
    "NonZero": "g (float[2,3] x) => (int64[2,n] y) { y = NonZero (x) }",
    "RoiAlign": "g (float[1,1,8,8] x, float[2,4] r, int64[2] i) => (float[2,1,1,1] y) { y = RoiAlign (x, r, i) }",
    "NonMaxSuppression": "g (float[1,6,4] x, float[1,1,6] s) => (int64[n,3] y) { y = NonMaxSuppression (x, s) }",
    "ScatterND add": "g (float[4,4] x, int64[2,1] i, float[2,4] u) => (float[4,4] y) "
    '{ y = ScatterND <reduction = "add"> (x, i, u) }',
    "ScatterElements max": "g (float[4,4] x, int64[2,4] i, float[2,4] u) => (float[4,4] y) "
    '{ y = ScatterElements <reduction = "max"> (x, i, u) }',
    "ScatterND": "g (float[4,4] x, int64[2,1] i, float[2,4] u) => (float[4,4] y) { y = ScatterND (x, i, u) }",
    "CumSum": "g (float[2,3] x) => (float[2,3] y) <int64 axis = {1}> { y = CumSum (x, axis) }",
    "OneHot": "g (int64[2,3] x) => (float[2,3,5] y) <int64 d = {5}, float[2] v = {0, 1}> { y = OneHot (x, d, v) }",
    "TopK": "g (float[2,8] x) => (float[2,2] y, int64[2,2] i) <int64[1] k = {2}> { y, i = TopK (x, k) }",
}


@pytest.mark.parametrize("name", ONE_NODE)
def test_what_the_table_says_of_a_node_is_what_the_builder_does(rtx: Any, name: str) -> None:
    """The parser's own word is not enough: it offers operators whose plugin or kernel is missing."""
    model = graph(f'<ir_version: 9, opset_import: ["" : 18]> {ONE_NODE[name]}')
    (node,) = model.graph
    logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    built = rtx.OnnxParser(network, logger).parse(as_bytes(model))
    built = built and builder.build_serialized_network(network, builder.create_builder_config()) is not None
    assert (takes("tensorrt-rtx", node) is None) == built


def test_experts_are_refused_before_the_build_with_node_operator_and_advice(tmp_path: Path) -> None:
    model = graph(f'<ir_version: 9, opset_import: ["" : 18]> {ONE_NODE["NonZero"]}')
    next(iter(model.graph)).name = "expert_0"
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        RefusedError,
        match=r"node expert_0 \(NonZero\): tensorrt-rtx .*mixtures of experts.*another flavour.*ONNX Runtime",
    ):
        prepare_graph(tmp_path / "model.onnx", tmp_path / "out", flavour="tensorrt-rtx", precision="fp16")
    record = prepare_graph(tmp_path / "model.onnx", tmp_path / "out", flavour="tensorrt", precision="fp32")
    assert not record.changed
