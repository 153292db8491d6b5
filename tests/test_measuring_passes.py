"""The passes that measure instead of removing: gates in front of the sums, the residual stream as outputs."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from toy_graphs import BLOCKS, WIDTH, evaluate, toy_decoder

from graph_passes import (
    GATE_NAMES,
    ExposeResiduals,
    GateAttention,
    RemoveAttention,
    find_attention,
    remove_attention,
    residual_names,
)

N_LAYERS = 3
SUBSETS = [subset for size in (0, 1, 2, 3) for subset in itertools.combinations(range(N_LAYERS), size)]
every_block = pytest.mark.parametrize("block", BLOCKS)


def gated(block: str) -> ir.Model:
    model = toy_decoder(block)
    GateAttention()(model)
    return model


@every_block
def test_open_gates_change_nothing_and_are_the_default(block: str) -> None:
    model = gated(block)
    onnx.checker.check_model(ir.serde.serialize_model(model))
    expected, result = evaluate(toy_decoder(block)), evaluate(model)
    for name, array in expected.items():
        np.testing.assert_array_equal(result[name], array, err_msg=name)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    assert [(entry.name, entry.shape) for entry in session.get_overridable_initializers()] == [
        (GATE_NAMES["self"], [N_LAYERS])
    ]


@every_block
@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_a_closed_gate_equals_a_removed_sublayer(block: str, layers: tuple[int, ...]) -> None:
    pruned = toy_decoder(block)
    remove_attention(pruned, layers, kv_names="keep")
    gates = np.ones(N_LAYERS, np.float32)
    gates[list(layers)] = 0.0
    expected = evaluate(gated(block), extra={GATE_NAMES["self"]: gates})
    for name, array in evaluate(pruned).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_gates_keep_the_original_layer_numbers_of_a_pruned_graph() -> None:
    model = toy_decoder()
    remove_attention(model, [0], kv_names="keep")
    GateAttention()(model)
    both = toy_decoder()
    remove_attention(both, [0, 2], kv_names="keep")
    result = evaluate(model, extra={GATE_NAMES["self"]: np.array([1, 1, 0], np.float32)})
    np.testing.assert_allclose(result["logits"], evaluate(both)["logits"], rtol=1e-5, atol=1e-5)


def test_gating_twice_is_refused() -> None:
    model = gated("pre-norm")
    with pytest.raises(ir.passes.PreconditionError, match="attention_gate already"):
        GateAttention()(model)


@every_block
def test_exposed_streams_differ_by_what_attention_adds(block: str) -> None:
    model = toy_decoder(block)
    before = evaluate(toy_decoder(block))
    sites = find_attention(model).sites
    branches = [site.residual.branch for site in sites]
    ExposeResiduals()(model)
    for branch in branches:
        branch.dtype, branch.shape = ir.DataType.FLOAT, ir.Shape(["b", "s", WIDTH])
        model.graph.outputs.append(branch)
    onnx.checker.check_model(ir.serde.serialize_model(model))
    result = evaluate(model)
    np.testing.assert_allclose(result["logits"], before["logits"], rtol=1e-5, atol=1e-5)
    for site, branch in zip(sites, branches, strict=True):
        stream, total = (result[name] for name in residual_names(site))
        assert stream.shape == total.shape
        np.testing.assert_allclose(total - stream, result[branch.name], rtol=1e-3, atol=1e-3)
        assert np.abs(total - stream).max() > 1e-2


def test_passes_compose_in_a_sequence() -> None:
    model = toy_decoder()
    ir.passes.Sequential(RemoveAttention([1], kv_names="keep"), GateAttention(), ExposeResiduals())(model)
    onnx.checker.check_model(ir.serde.serialize_model(model))
    result = evaluate(model, extra={GATE_NAMES["self"]: np.zeros(N_LAYERS, np.float32)})
    empty = toy_decoder()
    remove_attention(empty, range(N_LAYERS), kv_names="keep")
    np.testing.assert_allclose(result["logits"], evaluate(empty)["logits"], rtol=1e-5, atol=1e-5)
    exposed = [name for name in result if name.startswith("attention.")]
    assert exposed == ["attention.0.before", "attention.0.after", "attention.2.before", "attention.2.after"]


def test_a_pass_that_cannot_run_says_why_and_leaves_the_model_alone() -> None:
    model = toy_decoder()
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    with pytest.raises(ir.passes.PreconditionError, match="layer 7 does not exist"):
        RemoveAttention([7])(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
