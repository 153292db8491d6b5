"""How long a context an engine is built for: as asked, and within what the model can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_cases import bounds_of, write_graph
from onnx import TensorProto, helper, numpy_helper

from gatenorm_export.building import (
    ShapeRequest,
    check_shapes,
    find_flavour,
    load_overrides,
    make_profiles,
    settle_shapes,
)
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, MissingPartError, RefusedError, UsageError
from gatenorm_export.kinds import kind_of_graph, no_engine_of
from gatenorm_export.progress import Quiet
from gatenorm_export.records import ModelSpec

TABLE = {"model_type": "gpt2", "n_positions": 64}
COMPUTED = {"model_type": "llama", "max_position_embeddings": 64}


class Talk(Quiet):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def a_graph(folder: Path, config: dict[str, Any] | None) -> Path:
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return write_graph(folder / "g.onnx")


def looked_up(path: Path, rows: int, offset: int | None = None, entry: str = "position_ids") -> Path:
    """A graph that takes rows of a matrix at an input, some rows later."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "step"]) for name in ("input_ids", entry)
    ]
    nodes = [helper.make_node("Identity", [entry], ["same"])]
    if offset is not None:
        nodes += [
            helper.make_node("Constant", [], ["shift"], value=numpy_helper.from_array(np.array(offset, np.int64))),
            helper.make_node("Add", ["shift", "same"], ["places"]),
        ]
    nodes.append(helper.make_node("Gather", ["table", "same" if offset is None else "places"], ["found"]))
    table = numpy_helper.from_array(np.zeros((rows, 4), np.float32), "table")
    outputs = [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["batch", "step", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize(
    ("config", "asked", "settled", "said"),
    [
        (TABLE, {}, (63, 64), "a context of 64 tokens, since the model has a table of 64 positions (config.json)"),
        (COMPUTED, {}, (63, 64), "a context of 64 tokens, since the model was made for 64 tokens (config.json)"),
        (TABLE, {"prompt": 8}, (8, 64), "a context of 64 tokens, since the model has a table"),
        (TABLE, {"prompt": 8, "context": 64}, (8, 64), ""),
        (COMPUTED, {"context": 96}, (95, 96), "a context of 96 tokens as asked, although the model was made for 64"),
        (TABLE | {"n_positions": 4096}, {}, (512, 2048), ""),
        (None, {}, (512, 2048), ""),
        (None, {"context": 4096}, (512, 4096), ""),
    ],
    ids=str,
)
def test_what_is_not_asked_for_is_no_more_than_the_model_takes(
    tmp_path: Path, config: Any, asked: dict[str, int], settled: tuple[int, int], said: str
) -> None:
    talk, graph = Talk(), a_graph(tmp_path, config)
    found = settle_shapes(graph, ShapeRequest(batch=2, **asked), talk)
    assert (found.batch, found.prompt, found.context) == (2, *settled)
    assert [line.startswith(f"{graph}: {said}") for line in talk.lines] == ([True] if said else [])
    # The profiles are those of the settled request.
    assert make_profiles(graph, ShapeRequest(batch=2, **asked)) == make_profiles(graph, found)
    prefill, _ = make_profiles(graph, found)
    assert bounds_of(prefill)["attention_mask"][2] == (2, settled[1])


@pytest.mark.parametrize(
    ("config", "asked", "said"),
    [
        (
            TABLE,
            {"context": 65},
            "a context of 65 tokens is too long: the model has a table of 64 positions (config.js",
        ),
        (
            TABLE,
            {"prompt": 65},
            "a prompt of 65 tokens does not fit a context of 64, since the model has a table of 64",
        ),
        (
            COMPUTED,
            {"prompt": 65},
            "does not fit a context of 64, since the model was made for 64 tokens (config.json);",
        ),
        (None, {"prompt": 4000}, "a prompt of 4,000 tokens does not fit a context of 2,048; ask for a longer context"),
    ],
    ids=str,
)
def test_what_the_model_cannot_read_is_refused(tmp_path: Path, config: Any, asked: dict[str, int], said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        make_profiles(a_graph(tmp_path, config), ShapeRequest(**asked))
    assert said in str(caught.value)


def test_without_a_config_a_table_in_the_graph_tells(tmp_path: Path) -> None:
    for rows, offset in ((64, None), (66, 2)):
        graph = looked_up(tmp_path / "g.onnx", rows, offset)
        assert settle_shapes(graph, ShapeRequest()).context == 64
        with pytest.raises(RefusedError, match=r"a table of 64 positions \(told by the graph\)"):
            settle_shapes(graph, ShapeRequest(context=65))
    # What is looked up at another input says nothing of positions.
    assert settle_shapes(looked_up(tmp_path / "g.onnx", 64, entry="kinds"), ShapeRequest()).context == 2048


@pytest.mark.parametrize(("config", "refused"), [(TABLE, True), (COMPUTED, False)])
def test_bounds_of_a_file_stay_within_a_table_too(tmp_path: Path, config: dict[str, Any], refused: bool) -> None:
    graph, file = a_graph(tmp_path, config), tmp_path / "profiles.json"

    def profiles(name: str, entry: str, least: list[int], most: list[int]) -> Any:
        file.write_text(json.dumps({name: {entry: {"min": least, "opt": least, "max": most}}}))
        return make_profiles(graph, ShapeRequest(prompt=16, context=64), load_overrides(file))

    # The step of two onto the longest cache is for the client to leave out, whoever wrote the bounds.
    assert bounds_of(profiles("decode", "input_ids", [1, 1], [4, 2])[1])["attention_mask"][2] == (4, 65)
    for name, entry, most, said in (
        ("prefill", "input_ids", [1, 65], "profile prefill: a step of 1 to 65 tokens onto a cache of up to 48 is"),
        ("decode", "past_key_values.0.key", [1, 2, 64, 16], "a step of 1 to 2 tokens onto a cache of up to 64 is"),
    ):
        least = [1, 1] if entry == "input_ids" else [1, 2, 1, 16]
        if not refused:
            profiles(name, entry, least, most)
            continue
        with pytest.raises(RefusedError) as caught:
            profiles(name, entry, least, most)
        assert said in str(caught.value)
        assert "a table of 64 positions (config.json)" in str(caught.value)


def test_lengths_that_tensorrt_cannot_count_to_are_refused(tmp_path: Path) -> None:
    graph, file = a_graph(tmp_path, None), tmp_path / "profiles.json"
    content = {"decode": {"input_ids": {"min": [1, 1], "opt": [1, 1], "max": [99999999999, 1]}}}
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        load_overrides(file)
    said = "profiles.json: profile decode: input_ids: max is 99,999,999,999 in dimension 0; TensorRT counts to 2,147"
    assert said in str(caught.value)
    with pytest.raises(
        RefusedError, match=r"profile decode: dimension 1 of input attention_mask goes up to 2,147,483,"
    ):
        make_profiles(graph, ShapeRequest(context=2**31 - 1))


def test_a_build_that_the_model_cannot_fill_is_refused_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))
    graph = a_graph(tmp_path, TABLE)
    arguments = ["build", str(graph), "-o", str(tmp_path / "e.engine"), "--no-cache", "--flavour", "tensorrt-rtx"]
    assert main([*arguments, "--context", "65"]) == ExitCode.REFUSED
    assert "the model has a table of 64 positions (config.json)" in capsys.readouterr().err
    assert main([*arguments, "--context", "64"]) == ExitCode.OK
    assert "context" not in capsys.readouterr().err
    assert main(arguments) == ExitCode.OK
    assert "a context of 64 tokens, since the model has a table" in " ".join(capsys.readouterr().err.split())


def test_a_run_is_refused_before_the_model_is_exported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TABLE))
    spec = ModelSpec.model_construct(path=str(tmp_path), source="safetensors")
    check_shapes(spec, ShapeRequest(context=64))
    with pytest.raises(RefusedError, match="a table of 64 positions"):
        check_shapes(spec, ShapeRequest(context=65))
    # Beside a single file nothing need be its own.
    check_shapes(spec.model_copy(update={"path": str(tmp_path / "m.gguf")}), ShapeRequest(context=65))


@pytest.mark.parametrize("asked", [(1, 64, 32), (0,), (1, 0), (1, 1, 1), (1, 8, 32, 32)])
def test_senseless_requests_are_wrong_usage(asked: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"too small|does not fit"):
        ShapeRequest(*asked)


@pytest.mark.parametrize(
    ("output", "architecture", "said"),
    [
        ("last_hidden_state", "", "this is a text encoder"),
        ("logits", "BertForMaskedLM", "this is a text encoder"),
        ("logits", "ViTForImageClassification", "this is a vision tower"),
        ("logits", "BertLMHeadModel", ""),
        ("logits", "LlamaForCausalLM", ""),
    ],
)
def test_what_is_no_decoder_gets_no_engine(tmp_path: Path, output: str, architecture: str, said: str) -> None:
    """A head of classes ends in logits, as a decoder does; the config beside the graph tells them apart."""
    graph = a_graph(tmp_path, {"architectures": [architecture]} if architecture else None)
    model = onnx.load(str(graph))
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    model.graph.node.append(helper.make_node("Cast", ["input_ids"], [output], to=TensorProto.FLOAT))
    onnx.save(model, str(graph))
    assert no_engine_of(kind_of_graph(graph)) == (f"engines are built for decoders only, {said}" if said else "")
