"""A graph with a decoder's inputs and one node, and profiles in a form that is easy to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper


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


def bounds_of(profile: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {bound.input: (bound.min, bound.opt, bound.max) for bound in profile.bounds}
