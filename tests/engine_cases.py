"""Graphs with a decoder's inputs and little else, and profiles in a form that is easy to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_graph(path: Path, past: object = "past", mask: object = "past + step", operator: str = "Identity") -> Path:
    """A graph with a decoder's inputs and one node."""
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "step"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", mask]),
        helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["batch", 2, past, 16]),
    ]
    domain = "" if operator == "Identity" else "my.own"
    node = helper.make_node(operator, ["past_key_values.0.key"], ["present.0.key"], name="the_node", domain=domain)
    outputs = [helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, ["batch", 2, past, 16])]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("my.own", 1)]
    model = helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=imports, ir_version=8)
    onnx.save(model, str(path))
    return path


def write_attention(path: Path, tokens: list[Any], mask: list[Any], cache: list[Any]) -> Path:
    """One layer of GroupQueryAttention, whose inputs have these lengths; heads of 16."""
    name = lambda what, kind, shape: helper.make_tensor_value_info(what, kind, shape)  # noqa: E731
    inputs = [
        name("input_ids", TensorProto.INT64, tokens),
        name("position_ids", TensorProto.INT64, tokens),
        name("attention_mask", TensorProto.INT64, mask),
        # Symbols are an input's own, so that key and value share none.
        name("past.key", TensorProto.FLOAT, cache),
        name("past.value", TensorProto.FLOAT, [f"{word}v" if str(word).startswith("s4") else word for word in cache]),
    ]
    outputs = [
        name("logits", TensorProto.FLOAT, None),
        *(name(f"present.{part}", TensorProto.FLOAT, [cache[0], 2, "total", cache[3]]) for part in ("key", "value")),
    ]
    embed = helper.make_node("Gather", ["table", "input_ids"], ["x"])
    products = [helper.make_node("MatMul", ["x", "square"], [part]) for part in ("q", "k", "v")]
    lengths = [
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["sums"], keepdims=0),
        helper.make_node("Sub", ["sums", "one"], ["lasts64"]),
        helper.make_node("Cast", ["lasts64"], ["lasts"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["total64"]),
        helper.make_node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
    ]
    attend = helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "past.key", "past.value", "lasts", "total"],
        ["attended", "present.key", "present.value"],
        domain="com.microsoft",
        num_heads=2,
        kv_num_heads=2,
    )
    out = helper.make_node("MatMul", ["attended", "square"], ["branch"])
    nodes = [embed, *products, *lengths, attend, out, helper.make_node("Add", ["x", "branch"], ["logits"])]
    weights = [
        numpy_helper.from_array(np.ones((8, 32), np.float32), "table"),
        numpy_helper.from_array(np.ones((32, 32), np.float32), "square"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    widths = [name(part, TensorProto.FLOAT, [*tokens, 32]) for part in ("q", "k", "v")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights, value_info=widths)
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), str(path))
    return path


def bounds_of(profile: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {bound.input: (bound.min, bound.opt, bound.max) for bound in profile.bounds}
