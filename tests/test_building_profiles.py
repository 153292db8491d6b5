"""Profiles: bounds of every dynamic dimension from the graph, and those that a user writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_cases import bounds_of, write_attention, write_graph
from onnx import TensorProto, helper

from gatenorm_export.building import ShapeRequest, load_overrides, make_profiles
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.pruning import prune_graph


def test_every_dynamic_dimension_gets_its_bounds(tmp_path: Path) -> None:
    """Prefill takes a prompt of 8 onto up to 24 cached tokens; decode steps of up to 2 onto up to 31."""
    prefill, decode = make_profiles(write_graph(tmp_path / "g.onnx"), ShapeRequest(batch=2, prompt=8, context=32))
    assert [prefill.name, decode.name] == ["prefill", "decode"]
    assert bounds_of(prefill) == {
        "input_ids": ((1, 1), (2, 4), (2, 8)),
        "attention_mask": ((1, 1), (2, 4), (2, 32)),
        "past_key_values.0.key": ((1, 2, 0, 16), (2, 2, 0, 16), (2, 2, 24, 16)),
    }
    assert bounds_of(decode) == {
        "input_ids": ((1, 1), (2, 1), (2, 2)),
        "attention_mask": ((1, 2), (2, 17), (2, 33)),
        "past_key_values.0.key": ((1, 2, 1, 16), (2, 2, 16, 16), (2, 2, 31, 16)),
    }


def test_a_decode_step_can_be_fixed(tmp_path: Path) -> None:
    request = ShapeRequest(prompt=8, context=32, decode_step=1)
    decode = bounds_of(make_profiles(write_graph(tmp_path / "g.onnx"), request)[1])
    assert decode["input_ids"] == ((1, 1), (1, 1), (1, 1))
    assert decode["attention_mask"] == ((1, 2), (1, 17), (1, 32))


@pytest.mark.parametrize(("slots", "said"), [("slots", "is slots"), (None, "is dynamic without a name")])
def test_a_dimension_without_a_bound_is_refused(tmp_path: Path, slots: object, said: str) -> None:
    graph = write_graph(tmp_path / "g.onnx")
    model = onnx.load(str(graph))
    model.graph.input.append(helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["batch", slots]))
    onnx.save(model, str(graph))
    with pytest.raises(RefusedError, match=rf"dimension 1 of input memory {said}.*--profile"):
        make_profiles(graph, ShapeRequest())
    # A profile of the user's own closes the gap.
    given = {"min": [1, 1], "opt": [1, 4], "max": [1, 8]}
    overrides = profile_file(tmp_path, {name: {"memory": given} for name in ("prefill", "decode")})
    profiles = make_profiles(graph, ShapeRequest(), load_overrides(overrides))
    assert bounds_of(profiles[0])["memory"] == ((1, 1), (1, 4), (1, 8))


@pytest.mark.parametrize(
    ("tokens", "mask", "cache"),
    [
        (["batch", "step"], ["batch", "total"], ["batch", 2, "past", 16]),
        (["batch", "step"], [None, None], ["batch", 2, "past", 16]),
        (["s0", "s1"], ["s2", "s3"], ["s4", 2, "s5", 16]),
        ([None, None], [None, None], [None, 2, None, 16]),
        (["batch", "step"], ["batch", "total"], ["batch", 2, "past", "size"]),
    ],
    ids=str,
)
def test_lengths_are_told_by_what_an_input_is_for(tmp_path: Path, tokens: Any, mask: Any, cache: Any) -> None:
    """As exporters write them: a word for the sum, symbols of each input's own, none at all, an open size of a head."""
    write_attention(tmp_path / "g.onnx", tokens, mask, cache)
    file = profile_file(tmp_path, {"decode": {"input_ids": bound([1, 1], [2, 1], [4, 5])}})
    prefill, decode = make_profiles(tmp_path / "g.onnx", ShapeRequest(2, 8, 32), load_overrides(file))
    cached = ((1, 2, 0, 16), (2, 2, 0, 16), (2, 2, 24, 16))
    assert bounds_of(prefill) == {
        "input_ids": ((1, 1), (2, 4), (2, 8)),
        "position_ids": ((1, 1), (2, 4), (2, 8)),
        "attention_mask": ((1, 1), (2, 4), (2, 32)),
        "past.key": cached,
        "past.value": cached,
    }
    assert bounds_of(decode)["attention_mask"] == ((1, 2), (2, 17), (4, 36))
    assert bounds_of(decode)["past.value"] == ((1, 2, 1, 16), (2, 2, 16, 16), (4, 2, 31, 16))


@pytest.mark.parametrize(
    ("tokens", "mask", "cache"),
    [
        (["batch", "step"], ["batch", "total"], ["batch", 2, "past", "size"]),
        (["s0", "s1"], ["s2", "s3"], ["s4", 2, "s5", 16]),
        ([None, None], [None, None], [None, 2, None, 16]),
    ],
    ids=str,
)
def test_without_any_attention_a_mask_is_as_long_as_before(tmp_path: Path, tokens: Any, mask: Any, cache: Any) -> None:
    """The mask stays an input for the clients' sake, and nothing in the graph reads it any more."""
    write_attention(tmp_path / "g.onnx", tokens, mask, cache)
    before = make_profiles(tmp_path / "g.onnx", ShapeRequest(2, 8, 32))
    prune_graph(tmp_path / "g.onnx", tmp_path / "out", layers=[0], kv_names="keep")
    after = make_profiles(tmp_path / "out" / "model.onnx", ShapeRequest(2, 8, 32))
    kept = ("input_ids", "position_ids", "attention_mask")
    assert [bounds_of(profile) for profile in after] == [
        {name: bounds for name, bounds in bounds_of(profile).items() if name in kept} for profile in before
    ]


def test_without_caches_a_mask_that_is_read_may_be_of_any_length(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx")
    model = onnx.load(str(graph))
    del model.graph.input[2]
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "words"
    model.graph.node.append(helper.make_node("Cast", ["attention_mask"], ["shown"], to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("shown", TensorProto.FLOAT, None))
    onnx.save(model, str(graph))
    with pytest.raises(RefusedError, match="dimension 1 of input attention_mask is words, which is neither"):
        make_profiles(graph, ShapeRequest())


def test_an_open_length_that_no_attention_tells_is_refused(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx")
    model = onnx.load(str(graph))
    model.graph.input[2].type.tensor_type.shape.dim[3].dim_param = "size"
    onnx.save(model, str(graph))
    with pytest.raises(RefusedError, match=r"dimension 1 of input attention_mask is past \+ step|is size"):
        make_profiles(graph, ShapeRequest())


@pytest.mark.parametrize("bounds", [(0, 8, 32), (1, 0, 32), (1, 8, 1), (1, 64, 32), (1, 8, 32, 0), (1, 8, 32, 32)])
def test_senseless_bounds_are_refused(bounds: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"too small|does not fit"):
        ShapeRequest(*bounds)


def profile_file(folder: Path, content: object) -> Path:
    path = folder / "profiles.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def bound(least: list[int], typical: list[int], most: list[int]) -> dict[str, list[int]]:
    return {"min": least, "opt": typical, "max": most}


def test_given_bounds_hold_for_the_same_lengths_of_other_inputs(tmp_path: Path) -> None:
    """A batch of up to 4 and steps of up to 5 reach the mask and the cache, which the file does not name."""
    file = profile_file(tmp_path, {"decode": {"input_ids": bound([1, 1], [2, 1], [4, 5])}})
    graph = write_graph(tmp_path / "g.onnx")
    prefill, decode = make_profiles(graph, ShapeRequest(prompt=8, context=32), load_overrides(file))
    assert bounds_of(decode) == {
        "input_ids": ((1, 1), (2, 1), (4, 5)),
        "attention_mask": ((1, 2), (2, 17), (4, 36)),
        "past_key_values.0.key": ((1, 2, 1, 16), (2, 2, 16, 16), (4, 2, 31, 16)),
    }
    assert prefill == make_profiles(graph, ShapeRequest(prompt=8, context=32))[0]


def test_a_further_profile_needs_bounds_for_everything(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx")
    piece = {"input_ids": bound([1, 4], [1, 4], [1, 4])}
    with pytest.raises(RefusedError, match=r"profile piece: dimension 1 of input attention_mask is past \+ step"):
        make_profiles(graph, ShapeRequest(), load_overrides(profile_file(tmp_path, {"piece": piece})))
    piece["past_key_values.0.key"] = bound([1, 2, 0, 16], [1, 2, 8, 16], [1, 2, 12, 16])
    profiles = make_profiles(graph, ShapeRequest(), load_overrides(profile_file(tmp_path, {"piece": piece})))
    assert [profile.name for profile in profiles] == ["prefill", "decode", "piece"]
    assert bounds_of(profiles[2])["attention_mask"] == ((1, 4), (1, 12), (1, 16))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"input_idz": bound([1, 1], [1, 1], [1, 1])}, "has no input input_idz; its inputs are input_ids, attention_"),
        ({"input_ids": bound([1], [1, 1], [1, 1])}, "min of input input_ids has 1 dimensions, and the graph's has 2"),
        (
            {"past_key_values.0.key": bound([1, 2, 1, 16], [1, 2, 1, 16], [1, 3, 1, 16])},
            "max of input past_key_values.0.key is 3 in dimension 1, which the graph fixes to 2",
        ),
        ({"input_ids": bound([1, 4], [1, 3], [1, 8])}, "dimension 1 of input input_ids has min 4, opt 3, max 8"),
        ({"input_ids": bound([-1, 1], [1, 1], [1, 1])}, "has min -1, opt 1, max 1"),
        (
            {"input_ids": bound([1, 1], [1, 1], [2, 1]), "attention_mask": bound([1, 2], [1, 17], [1, 32])},
            "batch is one length, and inputs input_ids and attention_mask are given different bounds",
        ),
        (
            {"attention_mask": bound([1, 2], [1, 17], [1, 20])},
            "max of input attention_mask is 20 in dimension 1, which is past + step and by the other inputs 33",
        ),
    ],
)
def test_a_profile_that_the_graph_contradicts_is_refused(tmp_path: Path, inputs: Any, said: str) -> None:
    overrides = load_overrides(profile_file(tmp_path, {"decode": inputs}))
    with pytest.raises(RefusedError) as caught:
        make_profiles(write_graph(tmp_path / "g.onnx"), ShapeRequest(prompt=8, context=32), overrides)
    assert said in str(caught.value)
    assert "profile decode" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        {},
        {"decode": {}},
        {"decode": {"input_ids": [1, 1]}},
        {"decode": {"input_ids": {"min": [1, 1], "max": [1, 1]}}},
        {"decode": {"input_ids": bound([1, 1], [1, True], [1, 1])}},  # type: ignore[list-item]
        {"decode": {"input_ids": {"min": [1.5], "opt": [1], "max": [1]}}},
        '{"decode": {"a": {}}, "decode": {"a": {}}}',
    ],
    ids=str,
)
def test_a_file_that_holds_no_profiles_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(InputError, match=r"profiles\.json"):
        load_overrides(profile_file(tmp_path, content))
    with pytest.raises(InputError, match="cannot be read"):
        load_overrides(tmp_path / "absent.json")
