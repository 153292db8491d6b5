"""The build cache: what is taken from it, what decides, and that nothing about it can spoil a build."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.building import (
    BuildCache,
    BuildOptions,
    Flavour,
    Gpu,
    ShapeRequest,
    build_cache,
    build_engine,
    compile_worker,
    default_cache,
    engines,
    find_flavour,
    resources,
)
from gatenorm_export.building.job import BuildJob
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, MissingPartError
from gatenorm_export.progress import Quiet
from gatenorm_export.records import EngineArtifact

SHAPES, RTX = ShapeRequest(prompt=8, context=16), Flavour("tensorrt-rtx", "1.0")


def write_graph(path: Path, *, weights: float = 1.0, outside: bool = False) -> Path:
    """One product of tokens and a weight."""
    table = numpy_helper.from_array(np.full((16, 64), weights, np.float32), "table")
    node = helper.make_node("Gather", ["table", "input_ids"], ["logits"], name="gather")
    model = helper.make_model(
        helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "step"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "step", 64])],
            [table],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # onnx appends to a data file that is there.
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save(model, str(path), save_as_external_data=outside, location=f"{path.name}.data", size_threshold=0)
    return path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[BuildJob]:
    """Every job that was compiled; an engine holds the number of its build."""
    jobs: list[BuildJob] = []

    def stand_in(job: BuildJob, bar: Any) -> dict[str, Any]:
        jobs.append(job)
        Path(job.engine).write_bytes(f"engine {len(jobs)}".encode())
        counts = {"n_network_layers": 3, "n_inputs": 1, "n_outputs": 1, "constant_bytes": 4096}
        return counts | {"compile_seconds": 1.0, "peak_bytes": 10}

    monkeypatch.setattr(engines, "compile_engine", stand_in)
    return jobs


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache")


def build(graph: Path, engine: Path, cache: BuildCache | None, **changes: Any) -> EngineArtifact:
    options = BuildOptions(cache=cache, **{k: v for k, v in changes.items() if k in {"precision", "capabilities"}})
    return build_engine(
        graph,
        engine,
        flavour=changes.get("flavour", RTX),
        shapes=changes.get("shapes", SHAPES),
        options=options,
    )


def test_the_same_is_built_once(tmp_path: Path, builds, cache: BuildCache) -> None:
    graph = write_graph(tmp_path / "a" / "g.onnx")
    first = build(graph, tmp_path / "first.engine", cache)
    # The same bytes under another name, for an engine of another name.
    graph.rename(tmp_path / "renamed.onnx")
    second = build(tmp_path / "renamed.onnx", tmp_path / "out" / "second.engine", cache)
    assert len(builds) == 1
    assert (first.from_cache, second.from_cache) == (False, True)
    assert (tmp_path / "out" / "second.engine").read_bytes() == b"engine 1"
    assert second.engine == "second.engine"
    assert second.parent_path == str(tmp_path / "renamed.onnx")
    assert second.sha256 == hashlib.sha256(b"engine 1").hexdigest()
    assert EngineArtifact.load(tmp_path / "out" / "second.engine.json") == second
    # A copy, not a link: whoever spoils one engine spoils no other.
    (tmp_path / "first.engine").write_bytes(b"spoilt")
    build(tmp_path / "renamed.onnx", tmp_path / "third.engine", cache)
    assert (tmp_path / "third.engine").read_bytes() == b"engine 1"


def test_everything_that_decides_an_engine_is_in_its_key(
    tmp_path: Path, builds, cache: BuildCache, monkeypatch
) -> None:
    graph = write_graph(tmp_path / "g.onnx")
    build(graph, tmp_path / "e.engine", cache)
    for number, changes in enumerate(
        (
            {"shapes": ShapeRequest(prompt=9, context=16)},
            {"flavour": Flavour("tensorrt-rtx", "1.1")},
            {"flavour": Flavour("tensorrt", "1.0")},
            {"capabilities": ("8.6",)},
            {"precision": "fp16"},
        ),
        start=2,
    ):
        assert not build(graph, tmp_path / "e.engine", cache, **changes).from_cache
        assert build(graph, tmp_path / "e.engine", cache, **changes).from_cache
        assert len(builds) == number
    monkeypatch.setattr(engines, "find_gpu", lambda: Gpu("NVIDIA L4", "8.9"))
    assert not build(graph, tmp_path / "e.engine", cache).from_cache
    write_graph(graph, weights=2.0)
    assert not build(graph, tmp_path / "e.engine", cache).from_cache


def test_weights_outside_the_graph_count(tmp_path: Path, builds, cache: BuildCache) -> None:
    graph = write_graph(tmp_path / "g.onnx", outside=True)
    before = sha256_of(graph)
    build(graph, tmp_path / "e.engine", cache)
    write_graph(graph, weights=2.0, outside=True)
    assert sha256_of(graph) == before
    assert not build(graph, tmp_path / "e.engine", cache).from_cache
    assert len(builds) == 2


@pytest.mark.parametrize("how", ["changed", "cut", "gone", "record"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, builds, cache: BuildCache, how: str) -> None:
    graph = write_graph(tmp_path / "g.onnx")
    build(graph, tmp_path / "e.engine", cache)
    (kept,) = cache.folder.glob("*.engine")
    if how == "changed":
        kept.write_bytes(b"engine 0")
    elif how == "cut":
        kept.write_bytes(b"eng")
    elif how == "gone":
        kept.unlink()
    else:
        kept.with_name(f"{kept.name}.json").write_text("{")
    record = build(graph, tmp_path / "e.engine", cache)
    assert not record.from_cache
    assert (tmp_path / "e.engine").read_bytes() == b"engine 2"
    assert build(graph, tmp_path / "e.engine", cache).from_cache


def test_what_was_unused_for_longest_makes_room(tmp_path: Path, builds) -> None:
    cache = BuildCache(tmp_path / "cache", limit_bytes=20)
    graphs = [write_graph(tmp_path / f"{n}.onnx", weights=n) for n in range(3)]
    for age, graph in enumerate(graphs[:2]):
        build(graph, tmp_path / "e.engine", cache)
        for path in cache.folder.glob("*.json"):
            os.utime(path, (1e9 + age, path.stat().st_mtime if age else 1e9))
    # Taking it makes the first the younger one.
    assert build(graphs[0], tmp_path / "e.engine", cache).from_cache
    build(graphs[2], tmp_path / "e.engine", cache)
    assert len(list(cache.folder.glob("*.engine"))) == 2
    assert build(graphs[0], tmp_path / "e.engine", cache).from_cache
    assert not build(graphs[1], tmp_path / "e.engine", cache).from_cache


def test_a_cache_that_cannot_keep_does_no_harm(tmp_path: Path, builds, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, said = write_graph(tmp_path / "g.onnx"), []
    monkeypatch.setattr(Quiet, "say", lambda self, line: said.append(line))
    (tmp_path / "file").write_text("in the way")
    for cache in (
        BuildCache(tmp_path / "file" / "cache"),
        BuildCache(tmp_path / "small", limit_bytes=4),
        BuildCache(tmp_path / "full"),
    ):
        if cache.folder.name == "full":
            monkeypatch.setattr(build_cache, "free_disk", lambda folder: 3)
        build(graph, tmp_path / "e.engine", cache)
        assert not list(cache.folder.glob("*.engine")) if cache.folder.is_dir() else True
    assert len(builds) == len(said) == 3


def test_without_a_cache_nothing_is_kept(tmp_path: Path, builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATENORM_CACHE", str(tmp_path / "mine"))
    assert default_cache().folder == tmp_path / "mine" / "engines"
    graph = write_graph(tmp_path / "g.onnx")
    for _ in range(2):
        build(graph, tmp_path / "e.engine", None)
    assert len(builds) == 2
    assert not (tmp_path / "mine").exists()


def test_only_data_centre_tensorrt_keeps_timings(tmp_path: Path, builds, cache: BuildCache, monkeypatch) -> None:
    """TensorRT-RTX times nothing at build time: its timing cache is without effect."""
    monkeypatch.setattr(engines, "find_gpu", lambda: Gpu("NVIDIA L4", "8.9"))
    graph = write_graph(tmp_path / "g.onnx")
    build(graph, tmp_path / "e.engine", cache)
    build(graph, tmp_path / "e.engine", cache, flavour=Flavour("tensorrt", "10.9"))
    file = cache.folder / "timings" / "tensorrt-10.9-NVIDIA-L4-compute-capability-8.9.cache"
    assert [job.timing_cache for job in builds] == [None, str(file)]
    assert file.parent.is_dir()


def test_the_timings_reach_polygraphy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = pytest.importorskip("polygraphy.backend.trt")
    seen: dict[str, Any] = {}

    class Config:
        def __init__(self, **options: Any) -> None:
            seen.update(options)

    class Bytes:
        def __init__(self, network: Any, config: Any, **options: Any) -> None:
            seen.update(options)

        def __call__(self) -> bytes:
            return b""

    monkeypatch.setattr(backend, "CreateConfig", Config)
    monkeypatch.setattr(backend, "EngineBytesFromNetwork", Bytes)
    job = BuildJob(
        graph="g", engine="e", flavour="tensorrt", version="10.9", profiles=(), timing_cache=str(tmp_path / "t")
    )
    compile_worker._serialize(object(), None, None, job, None)
    assert seen["load_timing_cache"] == seen["save_timing_cache"] == str(tmp_path / "t")
    # Bindings without a progress monitor are no reason to fail.
    assert "progress_monitor" not in seen
    seen.clear()
    compile_worker._serialize(object(), None, None, job.model_copy(update={"flavour": "tensorrt-rtx"}), None)
    assert "load_timing_cache" not in seen


def test_a_real_engine_comes_from_the_cache_as_it_was(tmp_path: Path, cache: BuildCache) -> None:
    try:
        flavour = find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))
    graph = write_graph(tmp_path / "g.onnx")
    first = build(graph, tmp_path / "first.engine", cache, flavour=flavour)
    second = build(graph, tmp_path / "second.engine", cache, flavour=flavour)
    assert second.from_cache
    assert (tmp_path / "first.engine").read_bytes() == (tmp_path / "second.engine").read_bytes()
    assert first.model_copy(update={"engine": "second.engine", "from_cache": True}) == second


def test_the_verb_passes_everything_on(tmp_path: Path, builds, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATENORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gatenorm_export.building.find_flavour", lambda name: Flavour(name or "tensorrt-rtx", "1.0"))
    graph = write_graph(tmp_path / "g.onnx")
    file = tmp_path / "profiles.json"
    file.write_text('{"decode": {"input_ids": {"min": [1, 1], "opt": [3, 1], "max": [5, 1]}}}')

    def verb(*arguments: str) -> dict[str, Any]:
        assert main(["build", str(graph), "-o", str(tmp_path / "out"), "--json", "-q", *arguments]) == ExitCode.OK
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (tmp_path / "out" / "g.engine").is_file()
        return found

    def tokens(record: dict[str, Any]) -> list[Any]:
        return [[profile["bounds"][0][kind] for kind in ("min", "opt", "max")] for profile in record["profiles"]]

    shapes = ("--batch", "2", "--prompt", "8", "--context", "32")
    first = verb(*shapes, "--decode-step", "4")
    assert tokens(first) == [[[1, 1], [2, 4], [2, 8]], [[1, 1], [2, 1], [2, 4]]]
    assert verb(*shapes, "--decode-step", "4")["from_cache"]
    assert not verb(*shapes, "--decode-step", "4", "--no-cache")["from_cache"]
    assert tokens(verb(*shapes, "--profile", str(file)))[1] == [[1, 1], [3, 1], [5, 1]]
    assert verb("--precision", "fp16", "--no-conversion-check")["prepared"]["unmeasured"] == "not asked for"
    assert verb("--compute-capability", "8.6, 8.9,8.6")["capabilities"] == ["8.6", "8.9"]
    assert builds[-1].compute_capabilities == ("8.6", "8.9")
    monkeypatch.setattr(resources, "free_memory", lambda: 0)
    assert not verb("--no-cache", "--despite-memory")["from_cache"]
    assert main(["build", str(graph), "-o", str(tmp_path / "out"), "--no-cache"]) == ExitCode.REFUSED
    assert main(["build", str(graph), "-o", str(tmp_path / "out"), "--compute-capability", "sm86"]) == ExitCode.USAGE
    assert main(["build", str(graph), "-o", str(tmp_path / "out"), "--profile", str(graph)]) == ExitCode.BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) >= 3
