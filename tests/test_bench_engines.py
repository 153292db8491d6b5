"""bench on engines, with one that reads and writes memory by address as TensorRT does."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_cases import DROP, bench, graph_pair

from gatenorm_export.benching import backend_for
from gatenorm_export.benching.engine_model import EngineModel
from gatenorm_export.benching.protocol import Point
from gatenorm_export.benching.timers import WallClock
from gatenorm_export.errors import ExitCode, InputError, RefusedError
from gatenorm_export.records import EngineArtifact, Profile, ProfileBounds


@pytest.fixture(scope="module")
def pair(exported, tmp_path_factory) -> tuple[Path, Path]:
    """A base and a pruned graph."""
    return graph_pair(exported("llama-gqa")[1], tmp_path_factory.mktemp("pruned"))


HEADS, SIZE, VOCABULARY = 2, 3, 5


class FakeContext:
    """present = past and one new row a token, whose value is how many rows were read; logits are not written."""

    def __init__(self, log: list[tuple[str, int, int]]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.log = log

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, step = self.shapes["input_ids"]
        if name == "present.0.key":
            return (batch, HEADS, self.shapes["past.0.key"][2] + step, SIZE)
        return (batch, step, VOCABULARY)

    def execute_async_v3(self, stream: int) -> bool:
        batch, step = self.shapes["input_ids"]
        past = self.shapes["past.0.key"][2]
        assert self.shapes["attention_mask"] == (batch, past + step)
        assert self.profile == (0 if past == 0 else 1)
        source, target = self.addresses["past.0.key"], self.addresses["present.0.key"]
        assert source != target
        self.log.append(("run", source, target))
        read = array_at(source, (batch, HEADS, past, SIZE)).copy()
        new = np.full((batch, HEADS, step, SIZE), past, np.float32)
        array_at(target, (batch, HEADS, past + step, SIZE))[...] = np.concatenate([read, new], axis=2)
        return True


def array_at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    n = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * n).from_address(address)).reshape(shape) if n else np.empty(shape)


class FakeEngine:
    num_io_tensors = 5
    names = ("input_ids", "attention_mask", "past.0.key", "logits", "present.0.key")

    def __init__(self, log: list[tuple[str, int, int]]) -> None:
        self.log = log

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self.log)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="OUTPUT" if name in {"logits", "present.0.key"} else "INPUT")

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INT64" if name in {"input_ids", "attention_mask"} else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name.endswith(".key"):
            return (-1, HEADS, -1, SIZE)
        return (-1, -1, VOCABULARY) if name == "logits" else (-1, -1)


def engine_record(batch: int = 2, prompt: int = 16, context: int = 40) -> EngineArtifact:
    def profile(name: str, step: int, past: tuple[int, int]) -> Profile:
        def bound(entry: str, low: tuple[int, ...], high: tuple[int, ...]) -> ProfileBounds:
            return ProfileBounds(input=entry, min=low, opt=high, max=high)

        return Profile(
            name=name,
            bounds=(
                bound("input_ids", (1, 1), (batch, step)),
                bound("attention_mask", (1, 1 + past[0]), (batch, step + past[1])),
                bound("past.0.key", (1, HEADS, past[0], SIZE), (batch, HEADS, past[1], SIZE)),
            ),
        )

    return EngineArtifact.model_construct(
        engine="e.engine",
        profiles=(profile("prefill", prompt, (0, 0)), profile("decode", 1, (1, context - 1))),
        parent_sha256="p" * 64,
        sha256="s" * 64,
        precision="fp32",
        flavour="tensorrt-rtx",
        flavour_version="1.7",
        built_on="a machine",
        capabilities=(),
        prepared=None,
        n_layers=None,
        dropped=None,
        ancestors=None,
        recovered_from=None,
        model_digest=None,
    )


def test_an_engine_passes_its_cache_from_buffer_to_buffer() -> None:
    log: list[tuple[str, int, int]] = []
    stream = SimpleNamespace(cuda_stream=0)
    model = EngineModel(FakeEngine(log), engine_record(), stream, WallClock(), where="cpu")
    model.prepare(np.arange(8).reshape(2, 4), 5)
    model.prefill()
    assert model.kv_bytes() == 2 * HEADS * 4 * SIZE * 4
    for _ in range(4):
        model.decode()
    (_, _, home), *steps = log
    assert steps[0][1] == home
    for (_, _, written), (_, read, _) in itertools.pairwise(steps):
        assert read == written
    assert home not in [target for _, _, target in steps]
    last = array_at(steps[-1][2], (2, HEADS, 8, SIZE))
    np.testing.assert_array_equal(last[0, 0, :, 0], [0, 0, 0, 0, 4, 5, 6, 7])
    model.rewind()
    model.decode()
    assert log[-1][1] == home
    np.testing.assert_array_equal(array_at(log[-1][2], (2, HEADS, 5, SIZE))[0, 0, :, 0], [0, 0, 0, 0, 4])
    model.close()


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (Point("prefill", 3, 8), "--batch 3"),
        (Point("prefill", 1, 17), "--prompt 17"),
        (Point("decode", 1, 16), None),
    ],
    ids=str,
)
def test_an_engine_names_the_bound_that_a_point_passes(point: Point, words: str | None) -> None:
    model = EngineModel(FakeEngine([]), engine_record(), SimpleNamespace(cuda_stream=0), WallClock(), where="cpu")
    refused = model.refuses(point)
    assert refused is None if words is None else words in refused
    short = EngineModel(
        FakeEngine([]), engine_record(context=20), SimpleNamespace(cuda_stream=0), WallClock(), where="cpu"
    )
    assert "--context 32" in (short.refuses(Point("decode", 1, 16)) or "")


def test_engines_are_held_against_each_other_and_their_graphs(pair, tmp_path, monkeypatch) -> None:
    from gatenorm_export.artifacts import sha256_of
    from gatenorm_export.benching import engine_files
    from gatenorm_export.benching.graph_work import graph_work

    base_sha, pruned_sha = (sha256_of(graph) for graph in pair)
    records = {
        "base": engine_record().model_copy(
            update={"engine": "base", "parent_sha256": base_sha, "parent_path": str(pair[0]), "ancestors": ()}
        ),
        "pruned": engine_record().model_copy(
            update={
                "engine": "pruned",
                "parent_sha256": pruned_sha,
                "parent_path": str(tmp_path / "moved.onnx"),
                "ancestors": (base_sha,),
                "n_layers": 4,
                "dropped": DROP,
                "precision": "fp16",
            }
        ),
    }
    records["base"] = records["base"].model_copy(update={"precision": "fp16"})
    # Everything that opening checks is tested with the engines themselves.
    monkeypatch.setattr(engine_files, "open_engine", lambda path: records[path.name])
    base = engine_files.read_engine(Path("base"), "tensorrt-rtx")
    lost = engine_files.read_engine(Path("pruned"), "tensorrt-rtx")
    found = engine_files.read_engine(Path("pruned"), "tensorrt-rtx", pair[1])
    assert "--graphs" in str(lost.work)
    assert found.work.weight_bytes * 2 == graph_work(pair[1]).weight_bytes
    assert (found.work.dtype, found.work.score_bytes_per_pair) == ("float16", 0)
    assert base.kv_bytes_per_token == HEADS * SIZE * 2
    lineage = engine_files.engine_lineage(base, found)
    assert (lineage.n_layers, lineage.dropped, lineage.plan_sha256) == (4, DROP, "a" * 64)
    with pytest.raises(RefusedError, match="swapped"):
        engine_files.engine_lineage(found, base)
    with pytest.raises(RefusedError, match="same graph"):
        engine_files.engine_lineage(base, base)
    with pytest.raises(InputError, match="is not the graph"):
        engine_files.read_engine(Path("pruned"), "tensorrt-rtx", pair[0])
    with pytest.raises(RefusedError, match="--backend tensorrt-rtx"):
        engine_files.read_engine(Path("base"), "tensorrt")
    with pytest.raises(InputError, match="is no engine"):
        engine_files.read_engine(pair[0], "tensorrt-rtx")


def test_a_damaged_engine_is_named_even_without_a_gpu(tmp_path, capsys) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine could run engines")
    for name in ("base", "pruned"):
        record = engine_record().model_dump() | {"engine": f"{name}.engine", "bytes": 5, "build_seconds": 1.0}
        record |= {"n_network_layers": 1, "n_inputs": 1, "n_outputs": 1, "kind": "engine", "prepared": None}
        EngineArtifact.model_validate(record).save(tmp_path / f"{name}.engine.json")
        (tmp_path / f"{name}.engine").write_bytes(b"vtrt")
    assert backend_for(tmp_path / "base.engine", tmp_path / "pruned.engine") == "tensorrt-rtx"
    assert bench(tmp_path / "base.engine", tmp_path / "pruned.engine", "-o", tmp_path / "r.json") == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert "base.engine" in error
    assert "cut off" in error
    assert not (tmp_path / "r.json").exists()
