"""An ONNX file by itself scores like the checkpoint that it was exported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from fixed_lengths import with_fixed_lengths
from model_zoo import NAMES

from benchmarks.matrix import cells, models
from benchmarks.matrix.producing import Request, produce
from gatenorm_export.checkpoints import open_checkpoint
from gatenorm_export.checkpoints.onnx_constants import dequantised, unpacked_blocks
from gatenorm_export.errors import InputError
from gatenorm_export.scoring import score_model
from gatenorm_export.sources import resolve_model

# One of each way to lay out heads: Conv1D, by head, interleaved, turned in part, stacked, latent, multi-query, norms of
# queries, a fixed length (vision), and the operators of ONNX Runtime's optimizer.
CELLS = [
    ("optimum", "gpt2"),
    ("optimum", "gpt-neox"),
    ("optimum", "bloom"),
    ("optimum", "phi"),
    ("optimum", "phi3"),
    ("optimum", "codegen"),
    ("optimum", "falcon-mqa"),
    ("optimum", "gpt-bigcode"),
    ("optimum", "mpt"),
    ("optimum", "olmo2"),
    ("optimum", "deepseek-v3"),
    ("optimum-encoder", "bert"),
    ("optimum-encoder", "clip-vision"),
    ("stripped", "gpt2"),
    ("ort-optimizer", "gpt2"),
    ("ort-optimizer-encoder", "bert"),
    ("ort-optimizer-mha-encoder", "bert"),
    ("ort-extended", "phi"),
]
# How far weights of few bits may move a score; constant factors aside.
ROUNDED = [("fp16", 1e-4), ("bf16", 1e-3), ("qdq", 3e-3), ("dynamic-int8", 3e-3), ("int4", 2e-2)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def scores(place: Path, tower: str | None = None) -> np.ndarray:
    found = score_model(resolve_model(str(place), whole=False)).layers
    return np.array([entry.score for entry in found if tower is None or entry.tower == tower])


def of_checkpoint(family: str, folder: Path, tower: str | None = None) -> np.ndarray:
    models.family(family).make().save_pretrained(folder)
    return scores(folder, tower)


def assert_alike(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """The same but for one factor that all layers have in common."""
    assert len(found) == len(expected) > 1
    ratios = found / expected
    np.testing.assert_allclose(ratios / ratios.mean(), 1, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo(name: str, exported) -> None:
    spec, graph, _ = exported(name)
    np.testing.assert_allclose(scores(graph), scores(Path(spec.path)), rtol=1e-6)


@pytest.mark.parametrize(("exporter", "family"), CELLS)
def test_families_and_forms(exporter: str, family: str, cache: Path, tmp_path: Path) -> None:
    (graph,) = produce(Request(cache, cells.exporter(exporter), models.family(family))).values()
    assert_alike(scores(graph), of_checkpoint(family, tmp_path), 1e-5)


def test_heads_taken_by_their_numbers(cache: Path, tmp_path: Path) -> None:
    """``x[:, :, [-2]]``, Falcon's key, is a GatherND between two transposes where torch's newer exporter writes it."""
    (graph,) = produce(Request(cache, cells.exporter("optimum"), models.family("falcon-mqa"))).values()
    model = ir.load(graph)
    taken = [node for node in model.graph if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 2]
    assert len(taken) == 2 * len(scores(graph))
    for node in taken:
        number = ir.convenience.get_const_tensor(node.inputs[1])
        assert number is not None
        tape = ir.tape.Tape()
        turned = tape.op("Transpose", [node.inputs[0]], {"perm": [2, 0, 1, 3]})
        place = tape.op("Constant", [], {"value": ir.tensor(number.numpy().reshape(1, 1))})
        back = tape.op("Transpose", [tape.op("GatherND", [turned, place])], {"perm": [1, 2, 0, 3]})
        model.graph.insert_before(node, tape.nodes)
        ir.convenience.replace_all_uses_with(node.outputs[0], back)
        model.graph.remove(node, safe=True)
    ir.save(model, tmp_path / "taken.onnx")
    assert scores(tmp_path / "taken.onnx") == pytest.approx(scores(graph), rel=1e-12)


@pytest.mark.parametrize(("exporter", "tolerance"), ROUNDED)
def test_weights_of_few_bits(exporter: str, tolerance: float, cache: Path, tmp_path: Path) -> None:
    (graph,) = produce(Request(cache, cells.exporter(exporter), models.family("llama-gqa"))).values()
    expected = of_checkpoint("llama-gqa", tmp_path)
    assert_alike(scores(graph), expected, tolerance)
    # A scale that was left out would be a factor too, though one of its own for each layer.
    np.testing.assert_allclose(scores(graph), expected, rtol=0.05)


FIXED = [
    ("optimum-encoder", "clip-vision", "", ""),
    ("optimum-encoder", "siglip-vision", "", ""),
    ("optimum-speech", "whisper", "encoder_model", ""),
]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("exporter", "family", "graph", "tower"), FIXED)
def test_blocks_of_few_bits_and_a_fixed_number_of_tokens(
    exporter: str, family: str, graph: str, tower: str, bits: int, cache: Path, tmp_path: Path
) -> None:
    """Nothing infers the shape of what MatMulNBits gives, while the graph reshapes it to its number of tokens."""
    graphs = produce(Request(cache, cells.exporter(exporter), models.family(family)))
    plain = graphs[graph] if graph else next(iter(graphs.values()))
    quantised, count = in_blocks(plain, bits, tmp_path)
    assert count >= 4
    found = scores(tmp_path / "quantised.onnx", tower)
    np.testing.assert_allclose(found, scores(plain, tower), rtol={4: 0.05, 8: 5e-3}[bits])
    assert found == pytest.approx(scores(quantised, tower), rel=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("exporter", "family"),
    [
        ("optimum-no-past", "gpt2"),
        ("optimum-no-past", "deepseek-v3"),
        ("optimum-no-past", "llama-gqa"),
        ("optimum", "falcon-mqa"),
        ("optimum", "bloom"),
        ("int4", "llama-gqa"),
        ("ort-extended", "llama-gqa"),
    ],
)
def test_fixed_lengths_change_no_score(exporter: str, family: str, batch: int, cache: Path, tmp_path: Path) -> None:
    (graph,) = produce(Request(cache, cells.exporter(exporter), models.family(family))).values()
    fixed = with_fixed_lengths(graph, batch, tmp_path / "model.onnx")
    assert scores(fixed) == pytest.approx(scores(graph), rel=1e-9)


def in_blocks(plain: Path, bits: int, folder: Path) -> tuple[Path, int]:
    """Write quantised.onnx, and a graph with products of the weights that ONNX Runtime makes of its blocks; both the
    path of that one and how many products it has."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(onnx.load(plain), bits=bits, block_size=16, is_symmetric=False)
    quantiser.process()
    onnx.save(quantiser.model.model, folder / "quantised.onnx")
    model = ir.load(folder / "quantised.onnx")
    nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    for node in nodes:
        name = f"{node.outputs[0].name}_weight"
        weight = ir.Value(name=name, const_value=ir.tensor(multiplied_with_one(node), name=name))
        model.graph.register_initializer(weight)
        product = ir.node("MatMul", [node.inputs[0], weight])
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [product], node.outputs, product.outputs)
    ir.save(model, folder / "plain.onnx")
    return folder / "plain.onnx", len(nodes)


def multiplied_with_one(node: ir.Node) -> np.ndarray:
    """The weight [in, out] of a MatMulNBits: its result for the identity."""
    depth = node.attributes["K"].as_int()
    own = [onnx.numpy_helper.from_array(value.const_value.numpy(), value.name) for value in node.inputs[1:]]
    alone = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "alone",
        [onnx.helper.make_tensor_value_info(node.inputs[0].name, onnx.TensorProto.FLOAT, [depth, depth])],
        [onnx.helper.make_tensor_value_info(node.outputs[0].name, onnx.TensorProto.FLOAT, None)],
        own,
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(alone, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (weight,) = session.run(None, {node.inputs[0].name: np.eye(depth, dtype=np.float32)})
    return weight


def test_whisper(cache: Path, tmp_path: Path) -> None:
    graphs = produce(Request(cache, cells.exporter("optimum-speech"), models.family("whisper")))
    models.family("whisper").make().save_pretrained(tmp_path)
    for graph, here, there in [
        ("encoder_model", "", "encoder"),
        ("decoder_model", "", "decoder"),
        ("decoder_model", "cross", "cross"),
        ("decoder_model_merged", "", "decoder"),
        ("decoder_model_merged", "cross", "cross"),
    ]:
        assert_alike(scores(graphs[graph], here), scores(tmp_path, there), 1e-5)
    # Keys of its cross-attention come from outside: no weight in the file makes them.
    with pytest.raises(InputError, match=r"decoder_with_past_model\.onnx: cross-attention layer 0: .*node .*Softmax"):
        scores(graphs["decoder_with_past_model"])


def test_weights_beside_the_graph_are_read_by_range(exported, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    model = ir.load(graph)
    ir.save(model, tmp_path / "model.onnx", external_data="model.data")
    with (
        open_checkpoint("onnx", str(graph)) as inside,
        open_checkpoint("onnx", str(tmp_path / "model.onnx")) as outside,
    ):
        assert set(inside.tensors) == {f"layers.{layer}.{which}" for layer in range(4) for which in ("query", "key")}
        for name in inside.tensors:
            assert inside.tensors[name].shape == outside.tensors[name].shape
            np.testing.assert_array_equal(inside.read(name).values, outside.read(name).values)
            assert inside.read(name).digest == outside.read(name).digest
        assert inside.tensors["layers.0.key"].shape == (32, 64)
        assert inside.fields["towers"][0]["n_kv_heads"] == 2
    data = tmp_path / "model.data"
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"model\.data: truncated"):
        scores(tmp_path / "model.onnx")


def test_a_pruned_graph_keeps_its_layers_numbers(exported, tmp_path: Path) -> None:
    import graph_passes

    _, graph, _ = exported("llama-gqa")
    model = ir.load(graph)
    graph_passes.remove_attention(model, layers=[1])
    ir.save(model, tmp_path / "model.onnx")
    with open_checkpoint("onnx", str(tmp_path / "model.onnx")) as source:
        assert [layer["layer"] for layer in source.fields["towers"][0]["layers"]] == [0, 2, 3]
        assert source.fields["towers"][0]["n_layers"] == 4
        with open_checkpoint("onnx", str(graph)) as whole:
            np.testing.assert_array_equal(source.read("layers.3.key").values, whole.read("layers.3.key").values)


def test_queries_that_no_weight_makes_name_layer_and_node(exported, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-mha")
    model = ir.load(graph)
    node = next(node for node in model.graph if "layers.2/self_attn/q_proj/MatMul" in (node.name or ""))
    # A nonlinearity between projection and heads: what arrives is no longer the projection's columns.
    tanh = ir.node("Tanh", [node.outputs[0]], name="strange")
    node.outputs[0].replace_all_uses_with(tanh.outputs[0])
    tanh.replace_input_with(0, node.outputs[0])
    model.graph.insert_after(node, tanh)
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        InputError, match=r"model\.onnx: layer 2: .* of node .*layers\.2.*Softmax cannot be traced: its q"
    ):
        scores(tmp_path / "model.onnx")


def test_a_graph_without_attention(tmp_path: Path) -> None:
    model = ir.from_onnx_text('<ir_version: 8, opset_import: ["" : 17]> f (float[2] x) => (float[2] y) { y = Tanh(x) }')
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="no attention was found in it"):
        scores(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="not a readable ONNX file"):
        scores(tmp_path / "model.onnx")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_points", ["absent", "packed", "float"])
def test_blocks_of_few_bits(bits: int, zero_points: str) -> None:
    """Packed here value by value: the first of each byte in its lowest bits, zero points along each row."""
    rng = np.random.default_rng(bits)
    rows, depth, block = 6, 80, 32
    values = rng.integers(0, 2**bits, size=(rows, 96))
    scales = rng.uniform(0.1, 1, size=(rows, 3)).astype(np.float32)
    zeros = rng.integers(0, 2**bits, size=(rows, 3))

    def pack(table: np.ndarray) -> np.ndarray:
        per_byte = 8 // bits
        padded = np.zeros((len(table), -(-table.shape[1] // per_byte) * per_byte), dtype=np.int64)
        padded[:, : table.shape[1]] = table
        shares = [padded[:, index::per_byte] << (bits * index) for index in range(per_byte)]
        return sum(shares).astype(np.uint8)

    packed = pack(values).reshape(rows, 3, -1)
    given = {"absent": None, "packed": pack(zeros), "float": zeros.astype(np.float32)}[zero_points]
    offsets = np.full((rows, 3), 2 ** (bits - 1)) if given is None else zeros
    expected = (values - np.repeat(offsets, block, 1)) * np.repeat(scales, block, 1)
    found = unpacked_blocks(packed, scales.reshape(-1), given, None, bits=bits, block=block, depth=depth)
    np.testing.assert_allclose(found, expected[:, :depth], rtol=1e-6)
    groups = rng.permutation(np.arange(96) // block)[:depth]
    found = unpacked_blocks(packed, scales, given, groups, bits=bits, block=block, depth=depth)
    expected = (values[:, :depth] - offsets[:, groups]) * scales[:, groups]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_dequantising_by_tensor_axis_and_block() -> None:
    data = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    assert dequantised(data, np.float32(0.5), np.int8(1)).tolist() == ((data - 1.0) * 0.5).tolist()
    scale = np.float32([1, 2, 3])
    assert dequantised(data, scale, None, axis=0).tolist() == (data * scale[:, None]).tolist()
    blocks = np.float32([[1, 2], [3, 4], [5, 6]])
    assert dequantised(data, blocks, None, axis=1, block=2).tolist() == (data * np.repeat(blocks, 2, 1)).tolist()
