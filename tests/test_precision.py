"""Precision of whole graphs: what becomes half, what stays float32, what it costs, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from lowering_cases import CASES
from network_tape import Layer, Network
from random_networks import build
from toy_graphs import BLOCKS, toy_decoder

from gatenorm_export.building import Flavour, find_flavour
from gatenorm_export.errors import InputError, MissingPartError, RefusedError
from gatenorm_export.precision import graph_precision, prepare, prepare_graph
from gatenorm_export.records import Precision, PreparedGraph
from graph_passes import EmulateType, remove_attention, set_element_types
from graph_passes.precision.convert_precision import rounded

HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def saved(model: ir.Model, folder: Path, *, outside: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "source.onnx"
    if outside:
        ir.save(model, path, external_data="source.data", size_threshold_bytes=0)
    else:
        ir.save(model, path)
    return path


def prepared(model: ir.Model, folder: Path, precision: Precision, flavour: str = "tensorrt-rtx") -> PreparedGraph:
    return prepare_graph(saved(model, folder), folder / "out", flavour=flavour, precision=precision)


def loaded(folder: Path) -> ir.Model:
    model = ir.load(folder / "out" / "model.onnx")
    set_element_types(model)
    return model


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("block", BLOCKS)
def test_half_precision_of_every_block(block: str, precision: Precision, outside: bool, tmp_path: Path) -> None:
    source = saved(toy_decoder(block), tmp_path, outside=outside)
    record = prepare_graph(source, tmp_path / "out", flavour="tensorrt", precision=precision)
    assert record.check is not None, record.unmeasured
    assert record.check.steps == ("prompt", "decode 1", "decode 2", "decode 3")
    # Half a unit in the last place of either type, grown by a few layers.
    assert 1e-5 < record.check.worst.relative < {"fp16": 4e-3, "bf16": 4e-2}[precision]
    model = loaded(tmp_path)
    types = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    assert types["tokens"] == types["attention_mask"] == ir.DataType.INT64
    assert types["logits"] == ir.DataType.FLOAT
    caches = {name for name in types if name and name.startswith(("past", "present"))}
    assert set(record.caches) == caches
    assert {types[name] for name in caches} == {HALF[precision]}
    assert PreparedGraph.load(tmp_path / "out" / "prepared.json") == record
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        *(["model.onnx.data"] if len(record.files) > 1 else []),
        "prepared.json",
    ]


def test_what_stays_in_float32(tmp_path: Path) -> None:
    """Softmax with its scores and mask, and the norms' statistics; products, sums and the stream are half."""
    record = prepared(toy_decoder(), tmp_path, "fp16")
    wide, half = ir.DataType.FLOAT, ir.DataType.FLOAT16
    types = {value.name: value.dtype for node in loaded(tmp_path).graph for value in node.outputs}
    for name in ("probs0", "masked0", "scaled0", "bias_mask", "n0_mean", "n0_square", "n0_variance", "n0_unit"):
        assert types[name] == wide, name
    for name in ("q0", "present_0_key", "scores0", "context0", "attention0", "y0", "mlp0", "n0_scaled", "n0"):
        assert types[name] == half, name
    assert record.wide["Softmax"] == 3
    assert "MatMul" not in record.wide


def test_angles_and_what_they_are_made_of_stay_in_float32(tmp_path: Path) -> None:
    """Positions beyond 2048 are no whole numbers in half precision, and their angles noise."""
    model = ir.from_onnx_text("""
<ir_version: 8, opset_import: ["" : 17]>
g (int64[b,s] position_ids, float[b,s,4] x) => (float[b,s,4] y) <float[1,4] frequencies = {1, 0.5, 0.25, 0.1}> {
  one = Constant <value_ints=[2]> ()
  places = Cast <to=1> (position_ids)
  column = Unsqueeze (places, one)
  angles = MatMul (column, frequencies)
  cosines = Cos (angles)
  y = Mul (x, cosines)
}
""")
    prepared(model, tmp_path, "fp16")
    types = {value.name: value.dtype for node in loaded(tmp_path).graph for value in node.outputs}
    assert types["angles"] == types["cosines"] == ir.DataType.FLOAT
    # The sources of the angles were not rounded on the way.
    frequencies = loaded(tmp_path).graph.initializers["frequencies"]
    assert frequencies.const_value is not None
    assert frequencies.const_value.dtype == ir.DataType.FLOAT


def test_masks_stay_finite() -> None:
    lowest = ir.tensor(np.array([np.finfo(np.float32).min, -np.inf, 1e-3, 7e4], np.float32))
    found = rounded(lowest, ir.DataType.FLOAT16).numpy().astype(np.float32)
    assert found[0] == -65504.0
    assert found[1] == -np.inf
    assert found[3] == 65504.0


def test_a_graph_that_half_precision_overflows_is_refused(tmp_path: Path) -> None:
    model = toy_decoder()
    weight = model.graph.initializers["w21"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1e4, name="w21")
    other = model.graph.initializers["w11"]
    assert other.const_value is not None
    other.const_value = ir.tensor(other.const_value.numpy() * 1e4, name="w11")
    with pytest.raises(RefusedError, match=r"in fp16 its output \S+ is not finite where float32's is; bf16 has"):
        prepared(model, tmp_path, "fp16")
    assert not (tmp_path / "out").exists()
    assert prepared(model, tmp_path, "bf16").check is not None


def test_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    record = prepared(toy_decoder(), tmp_path, "fp32")
    assert not record.changed
    assert record.place(tmp_path / "out") == tmp_path / "source.onnx"
    assert not (tmp_path / "out").exists()


def test_what_was_converted_is_not_converted_again(tmp_path: Path) -> None:
    prepared(toy_decoder(), tmp_path, "fp16")
    graph = tmp_path / "out" / "model.onnx"
    assert graph_precision(graph) == "fp16"
    assert not prepare_graph(graph, tmp_path / "again", flavour="tensorrt", precision="fp16").changed
    for other in ("fp32", "bf16"):
        with pytest.raises(RefusedError, match=r"it is in fp16 already"):
            prepare_graph(graph, tmp_path / "again", flavour="tensorrt", precision=other)


@pytest.mark.parametrize("precision", ["fp8", "int4"])
def test_quantised_precisions_need_a_quantised_graph(precision: Precision, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=rf"not quantised to {precision}; quantise it first"):
        prepared(toy_decoder(), tmp_path, precision)


def test_packed_4_bits_pass_as_int4(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "packed weight, 4 bits")
    record = prepared(ir.from_proto(case.proto()), tmp_path, "int4")
    assert [(entry.operator, entry.into) for entry in record.lowered] == [
        ("com.microsoft.MatMulNBits", "DequantizeLinear of int4 and MatMul")
    ]
    tensors = [value.const_value for value in loaded(tmp_path).graph.initializers.values()]
    assert ir.DataType.INT4 in {tensor.dtype for tensor in tensors if tensor is not None}


def test_an_unknown_operator_and_an_unknown_flavour(tmp_path: Path) -> None:
    model = ir.from_onnx_text("""
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[b,4] x) => (float[b,4] y) { [strange] y = com.microsoft.MoE (x) }
""")
    with pytest.raises(RefusedError, match=r"source\.onnx: node strange \(com\.microsoft\.MoE\): tensorrt takes no"):
        prepared(model, tmp_path, "fp32", "tensorrt")
    with pytest.raises(InputError, match=r"no flavour tensorflow; there are: tensorrt, tensorrt-rtx"):
        prepared(model, tmp_path, "fp32", "tensorflow")
    assert not (tmp_path / "out").exists()


def test_branches_keep_their_precision(tmp_path: Path) -> None:
    model = ir.from_onnx_text("""
<ir_version: 8, opset_import: ["" : 18]>
g (bool flag, float[b,4] x) => (float[b,4] y) {
  [fork] y = If (flag) <then_branch = a () => (float[b,4] p) { p = Relu (x) },
                        else_branch = c () => (float[b,4] q) { q = Neg (x) }>
}
""")
    with pytest.raises(RefusedError, match=r"cannot be put into fp16: node fork \(If\)"):
        prepared(model, tmp_path, "fp16")


FUSED = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[{shape}] x) => (float[{rest}32] y)
   <float[16,32] w = {{{weights}}}, float[32] b = {{{biases}}}> {{
  h = com.microsoft.FusedMatMul <alpha: float = 0.5> (x, w)
  y = com.microsoft.BiasGelu (h, b)
}}
"""


def fused(shape: str) -> ir.Model:
    """A layer as ONNX Runtime's optimiser leaves it, over an input of this shape."""
    rest = "".join(f"{part}," for part in shape.split(",")[:-1])
    weights = ", ".join(f"{math.sin(number):.4f}" for number in range(16 * 32))
    biases = ", ".join(f"{math.cos(number):.4f}" for number in range(32))
    return ir.from_onnx_text(FUSED.format(shape=shape, rest=rest, weights=weights, biases=biases))


@pytest.mark.parametrize("shape", ["b,16", "4,16", "b,s,16", "b,3,2,16", "b,2,3,2,16"])
def test_plain_inputs_are_fed_by_their_shape(shape: str, tmp_path: Path) -> None:
    record = prepared(fused(shape), tmp_path, "fp16")
    assert {entry.operator for entry in record.lowered} == {"com.microsoft.FusedMatMul", "com.microsoft.BiasGelu"}
    assert record.check is not None, record.unmeasured
    assert 0 < record.check.worst.relative < 4e-3
    assert record.check.worst.range > 1


def test_a_length_that_nothing_tells_is_named(tmp_path: Path) -> None:
    record = prepared(fused("b,n,2,2,16"), tmp_path, "fp16")
    assert record.check is None
    assert record.unmeasured == "nothing tells how long axis 1 of input x is"


def test_lowered_attention_in_half_precision(tmp_path: Path) -> None:
    network = Network((Layer(attention="Attention"), Layer(attention="MultiHeadAttention")), cache=True)
    record = prepared(build(network).model, tmp_path, "fp16")
    assert {entry.operator for entry in record.lowered} == {"Attention", "com.microsoft.MultiHeadAttention"}
    assert record.check is not None, record.unmeasured
    assert record.check.worst.relative < 4e-3
    types = {node.op_type: node.inputs[0].dtype for node in loaded(tmp_path).graph if node.inputs and node.inputs[0]}
    assert types["Softmax"] == ir.DataType.FLOAT


def test_pruning_before_or_after_lowering_and_conversion(tmp_path: Path) -> None:
    first = toy_decoder()
    remove_attention(first, (1,), kv_names="keep")
    before = prepared(first, tmp_path / "a", "fp16")
    prepared(toy_decoder(), tmp_path / "b", "fp16")
    model = ir.load(tmp_path / "b" / "out" / "model.onnx")
    remove_attention(model, (1,), kv_names="keep")
    assert [v.name for v in model.graph.outputs] == [v.name for v in loaded(tmp_path / "a").graph.outputs]
    ir.external_data.load_to_model(model)
    set_element_types(model)
    answers = []
    for each in (loaded(tmp_path / "a"), model):
        ir.external_data.load_to_model(each)
        EmulateType(ir.DataType.FLOAT16)(each)
        session = onnxruntime.InferenceSession(ir.serde.serialize_model(each).SerializeToString())
        rng = np.random.default_rng(0)
        feed = {"tokens": rng.integers(0, 11, (2, 4)), "attention_mask": np.ones((2, 7), np.int64)}
        feed |= {
            entry.name: np.random.default_rng(3).normal(size=(2, 3, 12)).astype(np.float32)
            for entry in session.get_inputs()
            if entry.name.startswith("past")
        }
        answers.append(session.run(None, feed))
    assert before.changed
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-2 * np.ptp(one))


def test_emulation_rounds_like_the_type() -> None:
    """x / 3 + 1 in bfloat16, against ml_dtypes' own arithmetic."""
    model = ir.from_onnx_text("""
<ir_version: 8, opset_import: ["" : 18]>
g (bfloat16[n] x, bfloat16 three, bfloat16 one) => (bfloat16[n] y) {
  third = Div (x, three)
  y = Add (third, one)
}
""")
    set_element_types(model)
    EmulateType(ir.DataType.BFLOAT16)(model)
    x = np.linspace(-5, 5, 101).astype(ml_dtypes.bfloat16)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    three, one = ml_dtypes.bfloat16(3), ml_dtypes.bfloat16(1)
    feed = {"x": x.astype(np.float32), "three": np.array(3, np.float32), "one": np.array(1, np.float32)}
    (found,) = session.run(None, feed)
    np.testing.assert_array_equal(found, (x / three + one).astype(np.float32))


def test_a_wrong_conversion_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is no formality: a weight that is stored wrongly shows up in it."""
    real = prepare.store_graph

    def wrong(model: ir.Model, *rest: object, **named: object) -> None:
        value = model.graph.initializers["wo1"]
        assert value.const_value is not None
        value.const_value = ir.tensor(-value.const_value.numpy(), name="wo1")
        real(model, *rest, **named)  # type: ignore[arg-type]

    right = prepared(toy_decoder(), tmp_path / "right", "fp16").check
    monkeypatch.setattr(prepare, "store_graph", wrong)
    check = prepared(toy_decoder(), tmp_path / "wrong", "fp16").check
    assert check is not None
    assert right is not None
    assert check.worst.relative > 20 * right.worst.relative


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    try:
        return find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("attention", ["single", "Attention", "GroupQueryAttention", "MultiHeadAttention"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_parser_takes_what_was_prepared(
    attention: str, precision: Precision, flavour: Flavour, tmp_path: Path
) -> None:
    network = Network((Layer(attention=attention), Layer(attention=attention)), cache=True)
    record = prepared(build(network).model, tmp_path, precision)
    trt = flavour.module()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parsed = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(parsed, logger)
    assert parser.parse_from_file(str(record.place(tmp_path / "out"))), parser.get_error(0).desc()
    wanted = {"fp32": trt.float32, "fp16": trt.float16, "bf16": trt.bfloat16}[precision]
    outputs = {parsed.get_output(index).name: parsed.get_output(index).dtype for index in range(parsed.num_outputs)}
    assert outputs["logits"] == trt.float32
    assert outputs["present_0_key"] == wanted


def test_the_source_may_not_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(ir.serde.serialize_model(toy_decoder()), path)
    with pytest.raises(RefusedError, match=r"holds the graph that is to be prepared"):
        prepare_graph(path, tmp_path, flavour="tensorrt", precision="fp16")
