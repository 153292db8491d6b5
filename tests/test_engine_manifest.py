"""Engines as files: records, what is refused before loading, pairs, and what inspect tells; no engine is loaded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gatenorm_export.building import Flavour, Gpu, check_pair, gpus, open_engine, opening, read_engine
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, RefusedError
from gatenorm_export.records import EngineArtifact, Profile, ProfileBounds

DATA = b"vtrt" + b"an engine" * 100
BASE, PRUNED = "ba" * 32, "de" * 32


def profiles(prompt: int = 16, caches: int = 4) -> tuple[Profile, ...]:
    def profile(name: str, step: int) -> Profile:
        tokens = ProfileBounds(input="input_ids", min=(1, 1), opt=(1, 1), max=(1, step))
        cache = tuple(
            ProfileBounds(input=f"past_key_values.{layer}.key", min=(1, 2, 0, 8), opt=(1, 2, 4, 8), max=(1, 2, 31, 8))
            for layer in range(caches)
        )
        return Profile(name=name, bounds=(tokens, *cache))

    return profile("prefill", prompt), profile("decode", 2)


def a_record(name: str = "base.engine", **changes: Any) -> EngineArtifact:
    fields: dict[str, Any] = {
        "engine": name,
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "bytes": len(DATA),
        "parent_sha256": BASE,
        "parent_path": "/graphs/base/model.onnx",
        "network_sha256": BASE,
        "ancestors": (),
        "n_layers": 4,
        "dropped": (),
        "model_digest": "c0" * 32,
        "flavour": "tensorrt-rtx",
        "flavour_version": "1.7",
        "precision": "fp32",
        "profiles": profiles(),
        "n_network_layers": 900,
        "n_inputs": 11,
        "n_outputs": 9,
        "weight_bytes": 12345,
        "capabilities": opening.PORTABLE,
        "build_seconds": 3.0,
        "compile_seconds": 2.0,
        "peak_bytes": 300_000_000,
        "built_on": "a machine without a GPU",
    }
    return EngineArtifact(**{**fields, **changes})


def a_pruned(**changes: Any) -> EngineArtifact:
    fields: dict[str, Any] = {"parent_sha256": PRUNED, "ancestors": (BASE,), "dropped": (1, 2)}
    return a_record("pruned.engine", **{**fields, "profiles": profiles(caches=2), **changes})


def on_disk(folder: Path, record: EngineArtifact | None = None, data: bytes = DATA) -> Path:
    engine = folder / "base.engine"
    engine.write_bytes(data)
    if record is not None:
        record.save(folder / "base.engine.json")
    return engine


def test_a_record_survives_its_file_and_older_ones_are_read(tmp_path: Path) -> None:
    engine = on_disk(tmp_path, a_record())
    assert read_engine(engine) == a_record()
    older = a_record().to_object()
    for name in ("network_sha256", "ancestors", "gpu", "capabilities", "prepared", "weight_bytes", "from_cache"):
        del older[name]
    (tmp_path / "base.engine.json").write_text(json.dumps(older))
    assert read_engine(engine).ancestors is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DATA[:-1], "is cut off or is not the engine that base.engine.json describes: 903 bytes, there are to be 904"),
        (DATA + b"!", "is too long or is not the engine"),
        (b"vtrt" + b"another!!" * 100, "its sha256 is "),
        (b"", "it looks like an empty file"),
        (b"\x08\x08\x12\x07pytorch" + b"0" * 893, "it looks like an ONNX graph"),
        (b"ftrt" + b"0" * 900, "it looks like an engine of TensorRT;"),
        (bytes(range(4, 8)) * 226, "it looks like no engine at all"),
    ],
)
def test_an_engine_that_its_record_does_not_describe_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_engine(on_disk(tmp_path, a_record(), data))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such engine"):
        read_engine(tmp_path / "base.engine")
    engine = on_disk(tmp_path, data=b"\x08\x08\x12\x07pytorch")
    with pytest.raises(InputError, match=r"has no record base\.engine\.json beside it, and looks like an ONNX graph"):
        read_engine(engine)
    for text in ("{", "[]", '{"kind": "pruned"}'):
        (tmp_path / "base.engine.json").write_text(text)
        with pytest.raises(InputError, match="not a EngineArtifact record"):
            read_engine(engine)


def machine(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, version: str = "1.7") -> None:
    monkeypatch.setattr(opening, "find_flavour", lambda name: Flavour(name, version))
    monkeypatch.setattr(opening, "find_gpu", lambda: gpu)


def test_an_engine_of_another_version_or_gpu_is_refused_with_both_named(tmp_path: Path, monkeypatch) -> None:
    def refusal(record: EngineArtifact) -> str:
        with pytest.raises(RefusedError) as caught:
            open_engine(on_disk(tmp_path, record))
        return str(caught.value)

    ada, hopper = Gpu("NVIDIA L4", "8.9"), Gpu("NVIDIA H100", "9.0")
    machine(monkeypatch, ada, "1.8")
    assert "was built by tensorrt-rtx 1.7, and 1.8 is installed" in refusal(a_record())
    machine(monkeypatch, None)
    assert "needs an NVIDIA GPU, and this machine shows none" in refusal(a_record())
    machine(monkeypatch, hopper)
    assert (
        "was built for compute capability 8.0, 8.6, 8.9, 12.0 and newer, and this machine has NVIDIA H100 (compute "
        "capability 9.0)"
    ) in refusal(a_record())
    machine(monkeypatch, ada)
    assert "was built for compute capability 8.6, and" in refusal(a_record(capabilities=("8.6",)))
    data_centre = a_record(flavour="tensorrt", gpu=str(hopper), capabilities=("9.0",))
    assert f"was built for {hopper}, and this machine has {ada}" in refusal(data_centre)


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0", "12.1"])
def test_an_engine_is_opened_where_it_runs(tmp_path: Path, monkeypatch, capability: str) -> None:
    machine(monkeypatch, Gpu("a GPU", capability))
    assert open_engine(on_disk(tmp_path, a_record())) == a_record()
    own = a_record(flavour="tensorrt", gpu=f"a GPU (compute capability {capability})", capabilities=(capability,))
    assert open_engine(on_disk(tmp_path, own)) == own


class Driver:
    """libcuda as it answers with one GPU, or with a failure of one call."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 100 if name == self.failing else self.answer(name, *arguments)

    def answer(self, name: str, *arguments: Any) -> int:
        if name == "cuDeviceGetName":
            arguments[0].value = b"NVIDIA L4"
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = {75: 8, 76: 9}[arguments[1]]
        return 0


def test_the_gpu_is_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_driver", Driver)
    assert gpus.find_gpu() == Gpu("NVIDIA L4", "8.9")
    for failing in ("cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"):
        monkeypatch.setattr(gpus, "_driver", lambda failing=failing: Driver(failing))
        assert gpus.find_gpu() is None
    monkeypatch.setattr(gpus, "_driver", lambda: None)
    assert gpus.find_gpu() is None


def test_a_pair_belongs_together() -> None:
    check_pair(a_record(), a_pruned())
    # Pruned twice: the base is the grandparent.
    check_pair(a_record(), a_pruned(ancestors=("fe" * 32, BASE)))
    recovered = a_pruned(ancestors=("fe" * 32,), recovered_from="c0" * 32)
    check_pair(a_record(), recovered)


@pytest.mark.parametrize(
    ("base", "pruned", "said"),
    [
        (a_pruned(), a_record(), "are swapped: pruned.engine is the pruned one"),
        (a_record(), a_record("other.engine"), "were built from the same graph"),
        (a_record(), a_pruned(ancestors=("fe" * 32,)), "pruned.engine comes from graph fefefefefefe, and base.engine"),
        (a_record(), a_pruned(ancestors=()), "comes from no other graph, for it is not pruned"),
        (a_record(), a_pruned(ancestors=None), "was built from a graph without a manifest"),
        (a_record(), a_pruned(flavour_version="1.8"), "differ in flavour: tensorrt-rtx 1.7 and tensorrt-rtx 1.8"),
        (a_record(), a_pruned(precision="fp16"), "differ in precision: fp32 and fp16"),
        (a_record(), a_pruned(capabilities=("8.6",)), "differ in GPU"),
        (a_record(), a_pruned(profiles=profiles(32, 2)), "differ in profile prefill: input_ids is [1, 1] to [1, 16]"),
        (a_record(), a_pruned(profiles=profiles()[:1]), "have other profiles: prefill, decode and prefill"),
    ],
)
def test_what_is_no_pair_is_refused(base: EngineArtifact, pruned: EngineArtifact, said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_pair(base, pruned)
    assert said in str(caught.value)


def test_inspect_tells_what_an_engine_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = on_disk(tmp_path, a_pruned())
    assert main(["inspect", str(engine), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == a_pruned().to_object()
    assert main(["inspect", str(engine)]) == ExitCode.OK
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("an engine of tensorrt-rtx 1.7", "2 of 4 sublayers, without layers 1, 2", "12,345 bytes", "prefill"):
        assert part in shown
    # Under any name: what tells is the record beside it.
    engine.rename(tmp_path / "engine")
    (tmp_path / "base.engine.json").rename(tmp_path / "engine.json")
    assert main(["inspect", str(tmp_path / "engine"), "-q"]) == ExitCode.OK
    capsys.readouterr()
    engine.write_bytes(b"")
    assert main(["inspect", str(engine)]) == ExitCode.BAD_INPUT
    assert "has no record" in capsys.readouterr().err


def test_inspect_needs_no_tensorrt(tmp_path: Path) -> None:
    engine = on_disk(tmp_path, a_record())
    heavy = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "polygraphy", "onnx", "onnx_ir", "torch")
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in heavy)
    code += f"from gatenorm_export.cli.main import main\nsys.exit(main(['inspect', {str(engine)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "an engine of tensorrt-rtx 1.7" in done.stdout
