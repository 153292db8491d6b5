"""The roofline by hand, and what is counted in graphs against the numbers of their models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench_cases import WORK
from model_zoo import D_MODEL, VOCAB

from gatenorm_export.benching.graph_work import graph_work
from gatenorm_export.benching.probing import probe_sizes, product_graph, rates
from gatenorm_export.benching.protocol import Point
from gatenorm_export.benching.roofline import predicted_seconds, roofline_row
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records.bench import Probe, Work

PROBE = Probe(bytes_per_s=1e3, flops_per_s=1e4, dtype="float32", how="by decree")


def test_decode_is_bound_by_bytes_and_prefill_by_operations() -> None:
    # Weights: 1000 bytes take 1 s, 500 operations 0.05 s. Cache of 11 tokens: 64 x 11 x 3 bytes take 2.112 s.
    assert predicted_seconds(WORK, PROBE, Point("decode", 1, 10)) == pytest.approx(1 + 2.112)
    # 100 tokens: 50,000 operations take 5 s; the cache is written and read: 64 x 100 x 3 bytes take 19.2 s.
    assert predicted_seconds(WORK, PROBE, Point("prefill", 1, 100)) == pytest.approx(5 + 19.2)
    # Without cache bytes: 8 operations for each of 100 x 100 pairs take 8 s.
    bare = WORK.model_copy(update={"kv_bytes_per_token": 0})
    assert predicted_seconds(bare, PROBE, Point("prefill", 1, 100)) == pytest.approx(5 + 8)
    masked = bare.model_copy(update={"skips_masked": True})
    assert predicted_seconds(masked, PROBE, Point("prefill", 1, 100)) == pytest.approx(5 + 8 * 101 / 200)
    assert predicted_seconds(masked, PROBE, Point("decode", 1, 100)) == pytest.approx(
        predicted_seconds(bare, PROBE, Point("decode", 1, 100))
    )
    # Scores that are stored: 20 bytes for each of 100 x 100 pairs take 200 s.
    stored = bare.model_copy(update={"score_bytes_per_pair": 20})
    assert predicted_seconds(stored, PROBE, Point("prefill", 1, 100)) == pytest.approx(5 + 200)


def test_a_batch_shares_the_weights_and_not_the_cache() -> None:
    one, four = (predicted_seconds(WORK, PROBE, Point("decode", batch, 10)) for batch in (1, 4))
    assert one == pytest.approx(1 + 2.112)
    assert four == pytest.approx(1 + 4 * 2.112)


@pytest.mark.parametrize(
    ("speedup", "low", "high", "short", "reached"),
    [
        (2.0, 1.91, 2.1, False, True),
        # The median reaches it; an interval down to less than the half does not show it.
        (2.0, 0.9, 3.6, False, None),
        (1.7, 1.6, 2.1, True, None),
        (1.7, 1.6, 1.8, True, False),
    ],
)
def test_what_is_left_on_the_table(speedup: float, low: float, high: float, short: bool, reached: bool | None) -> None:
    base = Work(**(WORK.model_dump() | {"kv_bytes_per_token": 0, "attention_flops_per_pair": 0}))
    half = base.model_copy(update={"weight_bytes": 500, "flops_per_token": 250})
    row = roofline_row(base, half, PROBE, Point("decode", 1, 8), (speedup, low, high))
    assert (row.base_ms, row.pruned_ms, row.speedup) == pytest.approx((1000, 500, 2.0))
    assert row.share == pytest.approx(speedup / 2)
    assert (row.short, row.certain) == (short, reached is False)
    assert row.reached(low) is reached


def test_work_of_a_graph_is_that_of_its_model(exported, tmp_path: Path) -> None:
    """4 layers of width 64 with 4 query and 2 key heads of 16, an MLP of 128, a head of 128 words."""
    _, base, _ = exported("llama-gqa")
    attention, mlp = 2 * D_MODEL * D_MODEL + 2 * D_MODEL * 32, 3 * D_MODEL * 128
    work = graph_work(base)
    assert isinstance(work, Work)
    elements = 4 * (attention + mlp) + D_MODEL * VOCAB
    assert work == Work(
        weight_bytes=4 * elements,
        flops_per_token=2 * elements,
        n_attention=4,
        attention_flops_per_pair=4 * 4 * 4 * 16,
        kv_bytes_per_token=4 * 2 * 2 * 16 * 4,
        kv_passes=3,
        score_bytes_per_pair=4 * 4 * 4 * 4,
        skips_masked=False,
        dtype="float32",
    )
    prune_graph(base, tmp_path / "cut", layers=(0, 2))
    cut = graph_work(tmp_path / "cut" / "model.onnx")
    assert isinstance(cut, Work)
    assert work.flops_per_token - cut.flops_per_token == 2 * 2 * attention
    assert work.weight_bytes - cut.weight_bytes == 4 * 2 * attention
    assert (cut.n_attention, cut.kv_bytes_per_token) == (2, work.kv_bytes_per_token // 2)


def test_a_shared_embedding_is_read_once(exported) -> None:
    work = graph_work(exported("llama-tied")[1])
    apart = graph_work(exported("llama-gqa")[1])
    assert isinstance(work, Work)
    assert isinstance(apart, Work)
    assert work.weight_bytes == apart.weight_bytes


def test_quantised_matrices_count_their_stored_bytes_and_all_their_elements() -> None:
    """Packed to 4 bits with a scale for every 32 numbers; QDQ in int8; and a plain one."""
    import onnx_ir as ir

    from gatenorm_export.benching.graph_work import _matrices, _weights

    def weight(name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)

    x = ir.Value(name="x", shape=ir.Shape(["n", 64]), type=ir.TensorType(ir.DataType.FLOAT))
    packed, scales = weight("packed", np.zeros((32, 2, 16), np.uint8)), weight("scales", np.ones(64, np.float32))
    first = ir.node("MatMulNBits", [x, packed, scales], attributes={"K": 64, "N": 32}, domain="com.microsoft")
    whole, scale = weight("whole", np.zeros((32, 16), np.int8)), weight("scale", np.float32(1).reshape(()))
    dequantised = ir.node("DequantizeLinear", [whole, scale])
    second = ir.node("MatMul", [first.outputs[0], dequantised.outputs[0]])
    plain = weight("plain", np.zeros((16, 8), np.float32))
    third = ir.node("MatMul", [second.outputs[0], plain])
    graph = ir.Graph(
        [x],
        [third.outputs[0]],
        nodes=[first, dequantised, second, third],
        initializers=[packed, scales, whole, scale, plain],
        opset_imports={"": 21, "com.microsoft": 1},
    )
    model = ir.Model(graph, ir_version=10)
    n_bytes, elements = _matrices(model, _weights(model))
    assert elements == 64 * 32 + 32 * 16 + 16 * 8
    assert n_bytes == 32 * 2 * 16 + 64 * 4 + 32 * 16 + 4 * 16 * 8


def test_the_probe_multiplies_about_as_many_bytes_as_the_model() -> None:
    import onnxruntime

    sizes = probe_sizes(3_000_000, gpu=False)
    assert 0.5 < 4 * sizes.elements / 3_000_000 < 2
    assert probe_sizes(0, gpu=False).elements > 0
    assert 4 * probe_sizes(10**12, gpu=False).elements <= 2**29
    graph = product_graph(sizes, "float32")
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (y,) = session.run(None, {"x": np.ones((2, sizes.inner), np.float32)})
    assert y.shape == (2, sizes.outer)
    assert 0.1 < np.abs(y).mean() < 10
    probe = rates(sizes, {1: 0.5, sizes.rows: 2.0}, "float32", "")
    assert probe.bytes_per_s == 8 * sizes.elements
    assert probe.flops_per_s == sizes.elements * sizes.rows
