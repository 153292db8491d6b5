"""Engines: profiles from the graph, and real builds with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.native import export_native
from gatenorm_export.building import (
    BuildOptions,
    Flavour,
    ShapeRequest,
    build_engine,
    engines,
    find_flavour,
    load_overrides,
    make_profiles,
    resources,
)
from gatenorm_export.building.compiling import compile_engine
from gatenorm_export.building.job import BuildJob
from gatenorm_export.errors import GateNormError, InputError, MissingPartError, OutputError, RefusedError
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import EngineArtifact

SHAPES = ShapeRequest(prompt=16, context=32)
DROPPED = (1, 2)


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


@pytest.fixture(scope="module")
def built(exported, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EngineArtifact]:
    """Engines of one model: whole, pruned, and exported without those layers. Their files lie in "folder"."""
    folder = tmp_path_factory.mktemp("engines")
    spec, graph, _ = exported("llama-gqa")
    prune_graph(graph, folder / "pruned.onnx", layers=DROPPED)
    graphs = {
        "base": graph,
        "pruned": folder / "pruned.onnx",
        "native": export_native(spec, DROPPED, folder / "native"),
    }
    records = {
        name: build_engine(path, folder / f"{name}.engine", flavour=flavour, shapes=SHAPES)
        for name, path in graphs.items()
    }
    for name, record in records.items():
        data = (folder / f"{name}.engine").read_bytes()
        assert record.sha256 == hashlib.sha256(data).hexdigest()
        assert record.bytes == len(data) > 10_000
        assert EngineArtifact.load(folder / f"{name}.engine.json") == record
    return records


def bounds_of(profile: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {bound.input: (bound.min, bound.opt, bound.max) for bound in profile.bounds}


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


@pytest.mark.parametrize(("mask", "said"), [("something", "is something"), (None, "is dynamic without a name")])
def test_a_dimension_without_a_bound_is_refused(tmp_path: Path, mask: object, said: str) -> None:
    graph = write_graph(tmp_path / "g.onnx", mask=mask)
    with pytest.raises(RefusedError, match=rf"dimension 1 of input attention_mask {said}.*--profile"):
        make_profiles(graph, ShapeRequest())
    # A profile of the user's own closes the gap.
    given = {"min": [1, 1], "opt": [1, 4], "max": [1, 8]}
    overrides = profile_file(tmp_path, {name: {"attention_mask": given} for name in ("prefill", "decode")})
    profiles = make_profiles(graph, ShapeRequest(), load_overrides(overrides))
    assert bounds_of(profiles[0])["attention_mask"] == ((1, 1), (1, 4), (1, 8))


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


def test_a_pruned_engine_is_that_of_a_model_without_those_layers(built: dict[str, EngineArtifact]) -> None:
    """The parsed networks have the same layers, inputs, outputs and bytes of constants."""
    base, pruned, native = built["base"], built["pruned"], built["native"]
    for record in (pruned, native):
        assert (record.n_inputs, record.n_outputs) == (3 + 4, 1 + 4)
    assert (base.n_inputs, base.n_outputs) == (3 + 8, 1 + 8)
    assert pruned.n_network_layers == native.n_network_layers < base.n_network_layers
    assert pruned.weight_bytes == native.weight_bytes
    assert bounds_of(pruned.profiles[1]) == bounds_of(native.profiles[1])
    # Two layers of four projections: 4 heads and 2 key heads of 16 at a width of 64, and the norm before them.
    per_layer = 4 * (64 * 64 * 2 + 64 * 32 * 2)
    gone = (base.weight_bytes or 0) - (pruned.weight_bytes or 0)
    assert 2 * per_layer <= gone <= 2 * (per_layer + 4 * 64 + 1024)
    assert pruned.bytes < base.bytes
    assert abs(pruned.bytes - native.bytes) < 0.01 * native.bytes


def test_an_engine_tells_what_it_was_built_from(built: dict[str, EngineArtifact], exported) -> None:
    _, graph, _ = exported("llama-gqa")
    base, pruned, native = built["base"], built["pruned"], built["native"]
    assert base.parent_sha256 == hashlib.sha256(graph.read_bytes()).hexdigest() == base.network_sha256
    assert (base.ancestors, base.dropped, base.n_layers) == ((), (), 4)
    assert (pruned.ancestors, pruned.dropped, pruned.n_layers) == ((base.parent_sha256,), DROPPED, 4)
    assert (native.ancestors, native.dropped) == (None, None)
    assert base.capabilities == ("8.0", "8.6", "8.9", "12.0+")
    assert base.precision == "fp32"
    assert base.prepared is None
    assert base.peak_bytes is not None
    assert base.peak_bytes > 50e6


def test_a_graph_without_any_attention_left_is_built(exported, flavour: Flavour, tmp_path: Path) -> None:
    """No cache input names the past any more; the mask, which nothing reads, still has its length."""
    _, graph, _ = exported("llama-gqa")
    prune_graph(graph, tmp_path / "none.onnx", layers=(0, 1, 2, 3))
    record = build_engine(tmp_path / "none.onnx", tmp_path / "none.engine", flavour=flavour, shapes=SHAPES)
    assert record.n_outputs == 1
    assert bounds_of(record.profiles[1])["attention_mask"] == ((1, 2), (1, 17), (1, 33))


def test_half_precision_is_converted_and_its_error_told(exported, flavour: Flavour, built, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    options = BuildOptions(precision="fp16", capabilities=("8.6",))
    record = build_engine(graph, tmp_path / "half.engine", flavour=flavour, shapes=SHAPES, options=options)
    assert record.precision == "fp16"
    assert record.capabilities == ("8.6",)
    assert record.prepared is not None
    assert record.prepared.check is not None
    assert 0 < record.prepared.check.worst.relative < 0.02
    assert record.weight_bytes is not None
    assert record.weight_bytes < 0.6 * built["base"].weight_bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.engine", "half.engine.json"]


def test_what_cannot_be_built_is_refused_and_leaves_nothing(flavour: Flavour, tmp_path: Path) -> None:
    def refusal(graph: Path, kind: type[GateNormError] = RefusedError, **changes: Any) -> str:
        engine, options = tmp_path / "out" / "e.engine", BuildOptions(**changes)
        with pytest.raises(kind) as caught:
            build_engine(graph, engine, flavour=flavour, shapes=SHAPES, options=options)
        assert not list(tmp_path.glob("out/*"))
        return str(caught.value)

    said = refusal(write_graph(tmp_path / "g.onnx", operator="Mystery"))
    assert "the_node" in said
    assert "Mystery" in said
    plain = write_graph(tmp_path / "g.onnx")
    assert "nothing for compute capability 9.9; it offers 7.5, 8.0" in refusal(plain, capabilities=("9.9",))
    (tmp_path / "text.onnx").write_text("no graph")
    assert "text.onnx: not a readable ONNX file" in refusal(tmp_path / "text.onnx", InputError)
    with pytest.raises(RefusedError, match="tensorrt builds for the GPU of this machine only"):
        build_engine(
            plain,
            tmp_path / "out" / "e.engine",
            flavour=Flavour("tensorrt", "11.0"),
            shapes=SHAPES,
            options=BuildOptions(capabilities=("8.6",)),
        )


def test_no_engine_takes_the_place_of_something_else(flavour: Flavour, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx")
    (tmp_path / "e.engine.json").write_text('{"kind": "notes"}')
    for engine, said in (("g.onnx", "is no place for an engine"), ("e.engine", "not the record of an engine")):
        with pytest.raises(OutputError, match=said):
            build_engine(graph, tmp_path / engine, flavour=flavour, shapes=SHAPES)
    assert (tmp_path / "e.engine.json").read_text() == '{"kind": "notes"}'


class Interrupting:
    """A bar that is interrupted as soon as the builder reports its steps."""

    def advance(self, steps: float = 1) -> None:
        raise KeyboardInterrupt

    def total(self, steps: float) -> None:
        self.steps = steps


def test_an_interrupted_build_leaves_what_was_there(flavour: Flavour, tmp_path: Path, monkeypatch) -> None:
    graph, engine = write_graph(tmp_path / "g.onnx"), tmp_path / "e.engine"
    engine.write_bytes(b"an earlier engine")
    processes = []

    def interrupted(job: BuildJob, bar: object) -> dict[str, Any]:
        return compile_engine(job, Interrupting())

    started = engines.compile_engine.__globals__["subprocess"].Popen

    def remembered(*arguments: Any, **named: Any) -> Any:
        processes.append(started(*arguments, **named))
        return processes[-1]

    monkeypatch.setattr(engines, "compile_engine", interrupted)
    monkeypatch.setattr("subprocess.Popen", remembered)
    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, engine, flavour=flavour, shapes=SHAPES)
    assert [process.poll() for process in processes] == [-9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.engine", "g.onnx"]
    assert engine.read_bytes() == b"an earlier engine"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -9 $$", "was killed by signal 9; most likely for lack of memory"),
        ("echo the driver fell over >&2; exit 3", r"ended with exit code 3 \(the driver fell over\)"),
    ],
)
def test_a_builder_that_dies_is_told_in_one_line(tmp_path: Path, monkeypatch, script: str, said: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    graph, engine = write_graph(tmp_path / "g.onnx"), tmp_path / "out" / "e.engine"
    with pytest.raises(RefusedError, match=rf"g\.onnx: TensorRT's builder {said}") as caught:
        build_engine(graph, engine, flavour=Flavour("tensorrt-rtx", "1.0"), shapes=SHAPES)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_too_little_memory_or_disk_is_told_before_the_build(tmp_path: Path, monkeypatch) -> None:
    """The estimate lies above what was measured on SmolLM2-135M, by less than a sixth."""
    for weights, shared, measured in (
        (538_090_717, True, 2_665e6),
        (269_045_000, True, 2_130e6),
        (538_090_717, False, 3_590e6),
    ):
        needed = resources.memory_needed(weights, 7_426, shared=shared)
        assert 0.995 * measured < needed < measured * 7 / 6
    graph = write_graph(tmp_path / "g.onnx")
    monkeypatch.setattr(engines, "compile_engine", lambda *_: pytest.fail("the build began"))

    def refusal(kind: type[GateNormError], **options: Any) -> str:
        with pytest.raises(kind) as caught:
            build_engine(
                graph,
                tmp_path / "out" / "e.engine",
                flavour=Flavour("tensorrt-rtx", "1.0"),
                shapes=SHAPES,
                options=BuildOptions(**options),
            )
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    monkeypatch.setattr(resources, "free_memory", lambda: 100_000_000)
    assert "about 0.3 GB of memory, and 0.1 GB are free" in refusal(RefusedError)
    monkeypatch.setattr(resources, "free_disk", lambda folder: 900_000)
    assert "up to 0.00 GB, and 0.00 GB are free" in refusal(OutputError, despite_memory=True)
