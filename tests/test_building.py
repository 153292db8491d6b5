"""Engines: profiles from the graph, and real builds with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from gatenorm_export.building import Flavour, ShapeRequest, build_engine, find_flavour, make_profiles
from gatenorm_export.errors import InputError, MissingPartError, RefusedError
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import EngineArtifact


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


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    try:
        return find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))


def test_every_dynamic_dimension_gets_its_bounds(tmp_path: Path) -> None:
    prefill, decode = make_profiles(write_graph(tmp_path / "g.onnx"), ShapeRequest(batch=2, prompt=8, context=32))
    bounds = {bound.input: (bound.min, bound.opt, bound.max) for bound in prefill.bounds}
    assert bounds["input_ids"] == ((1, 1), (2, 4), (2, 8))
    assert bounds["attention_mask"] == ((1, 1), (2, 4), (2, 8))
    assert bounds["past_key_values.0.key"] == ((1, 2, 0, 16), (2, 2, 0, 16), (2, 2, 0, 16))
    bounds = {bound.input: (bound.min, bound.opt, bound.max) for bound in decode.bounds}
    assert bounds["input_ids"] == ((1, 1), (2, 1), (2, 1))
    assert bounds["attention_mask"] == ((1, 2), (2, 17), (2, 32))
    assert bounds["past_key_values.0.key"] == ((1, 2, 1, 16), (2, 2, 16, 16), (2, 2, 31, 16))


def test_a_graph_without_any_attention_left_is_built(exported, flavour: Flavour, tmp_path: Path) -> None:
    """No cache input names the past any more; the mask, which nothing reads, still has its length."""
    _, graph, _ = exported("llama-gqa")
    prune_graph(graph, tmp_path / "none.onnx", layers=(0, 1, 2, 3))
    shapes = ShapeRequest(prompt=16, context=32)
    record = build_engine(tmp_path / "none.onnx", tmp_path / "none.engine", flavour=flavour, shapes=shapes)
    assert record.n_outputs == 1
    bounds = {bound.input: (bound.min, bound.max) for bound in record.profiles[1].bounds}
    assert bounds["attention_mask"] == ((1, 2), (1, 32))


@pytest.mark.parametrize(("mask", "said"), [("something", "is something"), (None, "is dynamic without a name")])
def test_a_dimension_without_a_bound_is_refused(tmp_path: Path, mask: object, said: str) -> None:
    with pytest.raises(RefusedError, match=rf"dimension 1 of input attention_mask {said}"):
        make_profiles(write_graph(tmp_path / "g.onnx", mask=mask), ShapeRequest())


@pytest.mark.parametrize("bounds", [(0, 8, 32), (1, 0, 32), (1, 8, 1), (1, 64, 32)])
def test_senseless_bounds_are_refused(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"too small|does not fit"):
        ShapeRequest(*bounds)


def test_an_absent_flavour_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingPartError, match=r"no TensorRT is not installed.*gatenorm\[trt-rtx\].*gatenorm\[tensorrt\]"
    ):
        find_flavour()
    with pytest.raises(
        MissingPartError, match=r'tensorrt is not installed; engines need pip install "gatenorm\[tensorrt'
    ):
        find_flavour("tensorrt")


def test_base_and_pruned_engines_are_built(exported, flavour: Flavour, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    prune_graph(graph, tmp_path / "pruned.onnx", layers=(1, 2))
    shapes = ShapeRequest(prompt=16, context=32)
    base = build_engine(graph, tmp_path / "base.engine", flavour=flavour, shapes=shapes)
    pruned = build_engine(tmp_path / "pruned.onnx", tmp_path / "pruned.engine", flavour=flavour, shapes=shapes)
    for record, name in ((base, "base"), (pruned, "pruned")):
        data = (tmp_path / f"{name}.engine").read_bytes()
        assert record.sha256 == hashlib.sha256(data).hexdigest()
        assert record.bytes == len(data) > 10_000
        assert EngineArtifact.load(tmp_path / f"{name}.engine.json") == record
        assert [profile.name for profile in record.profiles] == ["prefill", "decode"]
    assert (base.n_inputs, base.n_outputs) == (3 + 8, 1 + 8)
    assert (pruned.n_inputs, pruned.n_outputs) == (3 + 4, 1 + 4)
    assert pruned.n_network_layers < base.n_network_layers
    assert pruned.bytes < base.bytes


def test_an_operator_that_no_flavour_knows_is_refused_by_name(flavour: Flavour, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx", operator="Mystery")
    with pytest.raises(RefusedError, match=r"TensorRT cannot take it: .*Mystery") as caught:
        build_engine(graph, tmp_path / "e.engine", flavour=flavour, shapes=ShapeRequest(prompt=8, context=16))
    assert "the_node" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx"]
