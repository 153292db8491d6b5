"""Laws of lowering: the same numbers in ONNX Runtime, the same signature, and no hurry with pruning."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from lowering_cases import CASES, MICROSOFT, Case
from network_tape import Layer, Network, flags
from random_networks import build, feed

from gatenorm_export.building import find_flavour
from gatenorm_export.errors import MissingPartError
from gatenorm_export.precision import OPERATORS, takes
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


def test_the_table_is_what_the_parser_says() -> None:
    try:
        trt = find_flavour("tensorrt-rtx").module()
    except MissingPartError as error:
        pytest.skip(str(error))
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert [name for name in sorted(OPERATORS["tensorrt-rtx"]) if not parser.supports_operator(name)] == []
