"""Engines: profiles from the graph, and real builds with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_cases import bounds_of, write_graph
from onnx import TensorProto, helper, numpy_helper

from benchmarks.native import export_native
from gatenorm_export.building import (
    BuildOptions,
    Flavour,
    ShapeRequest,
    build_engine,
    engines,
    find_flavour,
    resources,
)
from gatenorm_export.building.compiling import compile_engine
from gatenorm_export.building.job import BuildJob
from gatenorm_export.cli.main import main
from gatenorm_export.errors import GateNormError, InputError, MissingPartError, OutputError, RefusedError
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import EngineArtifact

SHAPES = ShapeRequest(prompt=16, context=32)
DROPPED = (1, 2)


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


def test_an_absent_flavour_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPartError, match=r"no TensorRT is installed.*gatenorm\[trt-rtx\].*gatenorm\[tensorrt\]"):
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


def test_packed_weights_are_counted_as_they_lie(flavour: Flavour, tmp_path: Path) -> None:
    """64 x 32 numbers of 4 bits, their scales, and the table that the tokens look up."""
    packed = helper.make_tensor("packed", TensorProto.INT4, [64, 32], [1] * 2048)
    scales = numpy_helper.from_array(np.ones((2, 32), np.float32), "scales")
    table = numpy_helper.from_array(np.ones((16, 64), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("DequantizeLinear", ["packed", "scales"], ["weight"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "step"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [tokens], [result], [packed, scales, table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(tmp_path / "g.onnx"))
    record = build_engine(tmp_path / "g.onnx", tmp_path / "e.engine", flavour=flavour, shapes=SHAPES)
    assert record.weight_bytes == 2048 // 2 + 4 * 2 * 32 + 4 * 16 * 64


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


def test_tensorrt_itself_names_the_node_and_the_reason(flavour: Flavour, tmp_path: Path) -> None:
    """Operators that it takes, on shapes that it does not: one is refused by the parser, one by the builder."""
    table, wrong = (numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in _TABLES.items())
    gather = helper.make_node("Gather", ["table", "input_ids"], ["x"])
    product = helper.make_node("MatMul", ["x", "wrong"], ["y"], name="the_product")
    reshape = helper.make_node("Reshape", ["x", "seven"], ["y"], name="the_reshape")
    seven = numpy_helper.from_array(np.array([7, 64]), "seven")
    for node, said in (
        (product, r"TensorRT cannot take it: node the_product \(MatMul\): .*must match"),
        (reshape, r"TensorRT cannot build an engine from it: .*the_reshape: reshaping failed"),
    ):
        tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "step"])
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([gather, node], "g", [tokens], [result], [table, wrong, seven])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, str(tmp_path / "g.onnx"))
        with pytest.raises(RefusedError, match=said) as caught:
            build_engine(tmp_path / "g.onnx", tmp_path / "out" / "e.engine", flavour=flavour, shapes=SHAPES)
        assert "\n" not in str(caught.value)
        assert "checkMacros" not in str(caught.value)
        assert not list(tmp_path.glob("out/*"))


_TABLES = {"table": (16, 64), "wrong": (5, 3)}


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
        (538_090_717, True, 2_716e6),
        (269_045_000, True, 2_130e6),
        (538_090_717, False, 3_696e6),
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
    assert "up to 6 MB, and 1 MB are free" in refusal(OutputError, despite_memory=True)
    for weights, shared, measured in ((538e6, True, 582e6), (269e6, True, 296e6), (538e6, False, 1_007e6)):
        assert measured < resources.engine_size(int(weights), 30, shared=shared) < 1.25 * measured


def test_a_run_builds_as_it_is_told(exported, flavour: Flavour, tmp_path: Path) -> None:
    """Precision and bounds reach the engines, and another precision is another build."""
    spec, _, _ = exported("llama-gqa")
    arguments = ["run", spec.path, "--drop", "1", "--out", str(tmp_path), "--no-latency", "--quiet", "--no-cache"]
    arguments += ["--prompt", "16", "--context", "32", "--max-text-tokens", "64", "--flavour", flavour.name]
    for precision, builds in (("fp16", True), ("fp16", False), ("as-is", True)):
        before = tmp_path / "engines" / "pruned.engine.json"
        known = before.read_bytes() if before.exists() else b""
        assert main([*arguments, "--precision", precision]) == 0
        record = EngineArtifact.load(before)
        assert record.precision == ("fp16" if precision == "fp16" else "fp32")
        assert (before.read_bytes() != known) is builds
