"""Laws of the surgery on small graphs of every block type, judged in ONNX Runtime."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from toy_graphs import BLOCKS, WIDTH, evaluate, toy_decoder, without_branches

from graph_passes import SurgeryRefused, find_attention, remove_attention

N_LAYERS = 3
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(range(N_LAYERS), size)]


def as_bytes(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_sublayer_is_found_with_its_cache(block: str) -> None:
    found = find_attention(toy_decoder(block))
    assert found.layers == (0, 1, 2)
    for site in found.sites:
        i = site.layer
        assert [value.name for value in site.cache.past] == [f"past_{i}_key", f"past_{i}_value"]
        assert [value.name for value in site.cache.present] == [f"present_{i}_key", f"present_{i}_value"]
        assert site.residual.form == ("parallel" if block == "parallel" else "residual")


@pytest.mark.parametrize("block", sorted(set(BLOCKS) - {"sandwich"}))
@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_removing_equals_zeroing(block: str, layers: tuple[int, ...]) -> None:
    expected = evaluate(without_branches(toy_decoder(block), layers))
    model = toy_decoder(block)
    remove_attention(model, layers, kv_names="keep")
    onnx.checker.check_model(ir.serde.serialize_model(model))
    result = evaluate(model)
    kept = [layer for layer in range(N_LAYERS) if layer not in layers]
    assert set(result) == {"logits"} | {f"present_{layer}_{part}" for layer in kept for part in ("key", "value")}
    for name, array in result.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_norm_behind_the_branch_goes_with_its_shift() -> None:
    """Sandwich blocks: x + norm(attention) becomes x, so the reference adds the normed branch minus itself."""
    reference = toy_decoder("sandwich")
    model = toy_decoder("sandwich")
    remove_attention(model, [1], kv_names="keep")
    merge = next(node for node in reference.graph if node.outputs[0].name == "y1")
    nothing = ir.node("Sub", [merge.inputs[1], merge.inputs[1]], name="nothing")
    reference.graph.insert_before(merge, nothing)
    merge.replace_input_with(1, nothing.outputs[0])
    expected, result = evaluate(reference), evaluate(model)
    np.testing.assert_allclose(result["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


def test_an_empty_plan_is_identity() -> None:
    model = toy_decoder()
    before = as_bytes(model)
    removal = remove_attention(model, [])
    assert removal.removed == ()
    assert as_bytes(model) == before


def test_dropping_twice_is_dropping_once() -> None:
    model = toy_decoder()
    remove_attention(model, [0, 2])
    once = as_bytes(model)
    remove_attention(model, [0, 2])
    assert as_bytes(model) == once
    assert find_attention(model).layers == (1,)


def test_dropping_one_after_the_other_is_dropping_both() -> None:
    together, stepwise = toy_decoder(), toy_decoder()
    remove_attention(together, [0, 1])
    remove_attention(stepwise, [0])
    remove_attention(stepwise, [1])
    first, second = evaluate(together), evaluate(stepwise)
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_dense_names_run_from_zero_and_keep_names_stay() -> None:
    dense, keep = toy_decoder(), toy_decoder()
    remove_attention(dense, [0])
    remove_attention(keep, [0], kv_names="keep")
    names = [[value.name for value in (*model.graph.inputs, *model.graph.outputs)] for model in (dense, keep)]
    for part in ("key", "value"):
        assert f"past_0_{part}" in names[0]
        assert f"past_1_{part}" in names[0]
        assert f"present_2_{part}" not in names[0]
        assert f"past_0_{part}" not in names[1]
        assert f"present_2_{part}" in names[1]


def test_only_what_belongs_to_the_branch_dies() -> None:
    model = toy_decoder()
    before = {node.name or node.outputs[0].name for node in model.graph}
    remove_attention(model, [1], kv_names="keep")
    gone = before - {node.name or node.outputs[0].name for node in model.graph}
    assert gone
    assert all(name is not None and ("1" in name) for name in gone)
    assert not any(
        name.endswith("1") and name[:2] in {"wq", "wk", "wv", "wo", "bo"} for name in model.graph.initializers
    )
    assert "w11" in model.graph.initializers


def test_detection_does_not_read_names() -> None:
    model = toy_decoder()
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"v{index}"
    remove_attention(model, [0], kv_names="keep")
    expected = evaluate(without_branches(toy_decoder(), (0,)))
    np.testing.assert_allclose(evaluate(model)["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [[3], [-1], [0, 7]])
def test_a_layer_that_does_not_exist_is_refused(layers: list[int]) -> None:
    model = toy_decoder()
    before = as_bytes(model)
    with pytest.raises(SurgeryRefused, match="3 attention sublayers"):
        remove_attention(model, layers)
    assert as_bytes(model) == before


def test_probabilities_that_leave_the_graph_are_refused() -> None:
    model = toy_decoder()
    probabilities = next(node.outputs[0] for node in model.graph if node.outputs[0].name == "probs1")
    model.graph.outputs.append(probabilities)
    before = as_bytes(model)
    with pytest.raises(SurgeryRefused, match=r"layer 1, node .*Softmax.*graph output"):
        remove_attention(model, [1])
    assert as_bytes(model) == before


def test_a_cache_that_something_else_reads_is_refused() -> None:
    model = toy_decoder()
    past = next(value for value in model.graph.inputs if value.name == "past_1_key")
    spy = ir.node("ReduceMean", [past], name="spy")
    spy.outputs[0].name = "spied"
    model.graph.append(spy)
    model.graph.outputs.append(spy.outputs[0])
    with pytest.raises(SurgeryRefused, match=r"layer 1, node spy \(ReduceMean\)"):
        remove_attention(model, [1])


def test_without_a_mask_the_last_cache_that_tells_the_past_length_is_refused() -> None:
    model = toy_decoder()
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    # By its name it would be the mask of Hugging Face's calling convention, which covers past and tokens.
    mask.name, mask.shape = "visible", ir.Shape(["b", "t"])
    with pytest.raises(SurgeryRefused, match=r"layer 0, node .*the graph reads a length from past_0_key"):
        remove_attention(model, range(N_LAYERS))


def test_a_softmax_that_is_no_attention_is_left_alone_with_a_reason() -> None:
    found = find_attention(toy_decoder("decoys"))
    assert len(found.unmatched) == N_LAYERS
    assert all("no product of two activations" in reason.reason for reason in found.unmatched)


def test_a_sum_that_is_a_graph_output_keeps_its_name() -> None:
    model = toy_decoder()
    stream = next(node.outputs[0] for node in model.graph if node.outputs[0].name == "y1")
    stream.shape, stream.dtype = ir.Shape(["b", "s", WIDTH]), ir.DataType.FLOAT
    model.graph.outputs.append(stream)
    remove_attention(model, [1], kv_names="keep")
    onnx.checker.check_model(ir.serde.serialize_model(model))
    assert "y1" in evaluate(model)
