"""Forms in which files come: softmaxes written out, functions, nodes out of order, merged branches of an If."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from toy_graphs import WIDTH, evaluate, toy_decoder, without_branches

from graph_passes import (
    InlineAttentionFunctions,
    SurgeryRefused,
    find_attention,
    remove_attention,
)


def assert_equals_zeroed(model: ir.Model, layers: tuple[int, ...]) -> None:
    expected = evaluate(without_branches(toy_decoder(), layers))
    np.testing.assert_allclose(evaluate(model)["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


def written_out(model: ir.Model) -> ir.Model:
    """Every softmax as exp(x - max) / sum(exp(x - max))."""
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        (scores,) = softmax.inputs
        largest = ir.node("ReduceMax", [scores], attributes={"axes": [-1]})
        shifted = ir.node("Sub", [scores, largest.outputs[0]])
        powers = ir.node("Exp", [shifted.outputs[0]])
        axes = ir.node("Constant", [], attributes={"value_ints": [-1]})
        total = ir.node("ReduceSum", [powers.outputs[0], axes.outputs[0]])
        probabilities = ir.node("Div", [powers.outputs[0], total.outputs[0]])
        model.graph.insert_before(softmax, [largest, shifted, powers, axes, total, probabilities])
        softmax.outputs[0].replace_all_uses_with(probabilities.outputs[0])
        model.graph.remove(softmax, safe=True)
    return model


def test_a_softmax_that_was_written_out_is_found() -> None:
    model = written_out(toy_decoder())
    assert find_attention(model).layers == (0, 1, 2)
    remove_attention(model, [0, 1], kv_names="keep")
    assert_equals_zeroed(model, (0, 1))


def test_an_exponential_that_is_no_softmax_is_not_mentioned() -> None:
    model = toy_decoder()
    stream = next(node.outputs[0] for node in model.graph if node.outputs[0].name == "y1")
    spare = ir.node("Exp", [stream])
    model.graph.append(spare)
    assert find_attention(model).unmatched == ()


def in_a_function(model: ir.Model) -> ir.Model:
    """The softmax of every layer moved into a function of the model."""
    inner = ir.Value(name="x")
    softmax = ir.node("Softmax", [inner], attributes={"axis": -1})
    body = ir.Graph([inner], softmax.outputs, nodes=[softmax], opset_imports={"": 17})
    function = ir.Function("local", "Probabilities", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    model.opset_imports["local"] = 1
    for node in [node for node in model.graph if node.op_type == "Softmax"]:
        call = ir.node("Probabilities", node.inputs, domain="local", name=f"call {node.outputs[0].name}")
        model.graph.insert_before(node, call)
        node.outputs[0].replace_all_uses_with(call.outputs[0])
        model.graph.remove(node, safe=True)
    return model


def test_attention_in_functions_is_reported_and_found_once_they_are_inlined() -> None:
    model = in_a_function(toy_decoder())
    hidden = find_attention(model)
    assert hidden.n_layers == 0
    assert len(hidden.unmatched) == 3
    assert "InlineAttentionFunctions" in hidden.unmatched[0].reason
    InlineAttentionFunctions()(model)
    assert not model.functions
    remove_attention(model, [2], kv_names="keep")
    assert_equals_zeroed(model, (2,))


def test_functions_without_attention_stay() -> None:
    model = in_a_function(toy_decoder())
    (function,) = model.functions.values()
    function.graph[0].op_type = "Relu"
    assert not InlineAttentionFunctions()(model).modified
    assert len(model.functions) == 1


def test_nodes_may_be_out_of_order() -> None:
    model = toy_decoder()
    nodes = list(model.graph)
    random.Random(0).shuffle(nodes)
    model.graph.remove(list(model.graph))
    model.graph.extend(nodes)
    found = find_attention(model)
    assert [site.cache.past[0].name for site in found.sites] == ["past_0_key", "past_1_key", "past_2_key"]
    remove_attention(model, [0], kv_names="keep")
    model.graph.sort()
    assert_equals_zeroed(model, (0,))


def test_names_that_number_keys_and_values_on_are_renumbered_alike() -> None:
    """torch's exporter numbers a flat list: layer i has 2 i for its keys and 2 i + 1 for its values."""
    model = toy_decoder()
    for site in find_attention(model).sites:
        for prefix, values in (("past_key_values", site.cache.past), ("present", site.cache.present)):
            for slot, value in enumerate(values):
                value.name = f"{prefix}_{2 * site.layer + slot}"
    remove_attention(model, [1])
    names = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    assert [name for name in names if name.startswith("past")] == [f"past_key_values_{i}" for i in range(4)]
    assert [name for name in names if name.startswith("present")] == [f"present_{i}" for i in range(4)]
    onnx.checker.check_model(ir.serde.serialize_model(model))


def test_names_kept_once_can_be_renumbered_later() -> None:
    model = toy_decoder()
    remove_attention(model, [0], kv_names="keep")
    remove_attention(model, [1], kv_names="dense")
    assert [value.name for value in model.graph.inputs if "past" in (value.name or "")] == [
        "past_0_key",
        "past_0_value",
    ]


def merged(first: ir.Model, second: ir.Model) -> ir.Model:
    """Two decoders as the branches of an If, as merged decoders have them; inputs and weights are the outer graph's."""
    graph = first.graph
    ends = list(graph.outputs)
    inputs = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    for value in (*second.graph.inputs, *second.graph.initializers.values()):
        value.replace_all_uses_with(inputs[value.name])
    branches = []
    for model, prefix in ((first, "then"), (second, "else")):
        outputs, nodes = list(model.graph.outputs), list(model.graph)
        model.graph.outputs.clear()
        model.graph.remove(nodes)
        for node in nodes:
            for value in node.outputs:
                value.name = f"{prefix}/{value.name}"
        branches.append(ir.Graph([], outputs, nodes=nodes, opset_imports={"": 17}, name=prefix))
    flag = ir.Value(name="use_cache", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(flag)
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    choice = ir.node("If", [flag], attributes=attributes, num_outputs=len(ends), name="choice")
    for value, end in zip(choice.outputs, ends, strict=True):
        value.name, value.shape, value.type = end.name.removeprefix("then/"), end.shape, end.type
    graph.append(choice)
    graph.outputs.extend(choice.outputs)
    return first


@pytest.mark.parametrize("layers", [(0,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("flag", [True, False])
def test_both_branches_of_a_merged_decoder_are_pruned(layers: tuple[int, ...], flag: bool) -> None:
    model = merged(toy_decoder(), toy_decoder())
    found = find_attention(model)
    assert found.n_layers == 3
    assert len(found.sites) == 6
    remove_attention(model, layers)
    onnx.checker.check_model(ir.serde.serialize_model(model))
    assert find_attention(model).layers == tuple(layer for layer in range(3) if layer not in layers)
    names = [value.name for value in model.graph.outputs]
    kept = 3 - len(layers)
    assert names == ["logits", *(f"present_{i}_{part}" for i in range(kept) for part in ("key", "value"))]
    reference = toy_decoder()
    remove_attention(reference, layers)
    expected, result = evaluate(reference), evaluate(model, extra={"use_cache": np.array(flag)})
    assert set(result) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_branches_that_do_not_correspond_are_declined_with_both_counts() -> None:
    short = toy_decoder()
    remove_attention(short, [1], kv_names="keep")
    # The shorter branch gives its own past on for the layer that it lacks.
    for part in ("key", "value"):
        past = ir.Value(name=f"past_1_{part}")
        short.graph.inputs.append(past)
        same = ir.node("Identity", [past])
        same.outputs[0].name = f"present_1_{part}"
        short.graph.append(same)
        short.graph.outputs.insert(3 + (part == "value"), same.outputs[0])
    model = merged(toy_decoder(), short)
    found = find_attention(model)
    assert found.sites == ()
    assert "hold 3 and 2 attention sublayers" in found.unmatched[0].reason
    with pytest.raises(SurgeryRefused, match="no attention sublayer; 1 more resemble attention"):
        remove_attention(model, [0])


def test_a_session_takes_the_merged_decoder() -> None:
    """The test's own merging is a graph that ONNX Runtime runs."""
    model = merged(toy_decoder(), toy_decoder())
    expected = evaluate(toy_decoder())
    for flag in (True, False):
        result = evaluate(model, extra={"use_cache": np.array(flag)})
        for name, array in expected.items():
            np.testing.assert_array_equal(result[name], array, err_msg=name)


def test_an_if_inside_attention_goes_with_it() -> None:
    """As in DeBERTa, whose relative positions are computed in branches: what they capture is released with them."""
    model = toy_decoder()
    keys = next(node for node in model.graph if node.outputs[0].name == "knew1").outputs[0]
    flag = ir.Value(name="flag", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    model.graph.inputs.append(flag)
    branches = {}
    for name in ("then_branch", "else_branch"):
        same = ir.node("Identity", [keys])
        same.outputs[0].name = f"{name}/keys"
        same.outputs[0].type, same.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["b", "s", WIDTH])
        branches[name] = ir.Graph([], same.outputs, nodes=[same], opset_imports={"": 17}, name=name)
    choice = ir.node("If", [flag], attributes=branches, name="choice")
    choice.outputs[0].name = "chosen"
    reader = next(node for node in model.graph if node.outputs[0].name == "present_1_key")
    model.graph.insert_before(reader, choice)
    reader.replace_input_with(1, choice.outputs[0])
    remove_attention(model, [1], kv_names="keep")
    assert "wk1" not in model.graph.initializers
    onnx.checker.check_model(ir.serde.serialize_model(model))
    result = evaluate(model, extra={"flag": np.array(True)})
    expected = evaluate(without_branches(toy_decoder(), (1,)))
    np.testing.assert_allclose(result["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


def test_a_pooling_head_takes_no_number_before_and_after_every_layer_went() -> None:
    """A softmax between two products that adds to no stream; the metadata of an emptied graph is an empty list."""
    model = toy_decoder()
    stream = next(node.inputs[0] for node in model.graph if node.outputs[0].name == "logits")
    turned = ir.node("Transpose", [stream], attributes={"perm": [0, 2, 1]})
    scores = ir.node("MatMul", [stream, turned.outputs[0]])
    weights = ir.node("Softmax", [scores.outputs[0]], attributes={"axis": -1})
    pooled = ir.node("MatMul", [weights.outputs[0], stream])
    pooled.outputs[0].name, pooled.outputs[0].dtype = "pooled", ir.DataType.FLOAT
    pooled.outputs[0].shape = ir.Shape(["b", "s", WIDTH])
    model.graph.extend([turned, scores, weights, pooled])
    model.graph.outputs.append(pooled.outputs[0])
    assert find_attention(model).n_layers == 3
    remove_attention(model, range(3))
    again = find_attention(model)
    assert (again.layers, again.n_layers) == ((), 3)
    assert [no.layer for no in again.unmatched] == [None]
    remove_attention(model, range(3))
