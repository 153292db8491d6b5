"""The C++ programs of examples/cpp, built for the tests, and bundles to run them on."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from toy_graphs import toy_decoder

from gatenorm_export.bundling import Bundle, BundleRequest, make_bundle, open_bundle
from gatenorm_export.bundling.stepping import Stepper, open_graph
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records.bundle import UNSEALED

SOURCE = Path(__file__).parent.parent / "examples" / "cpp"
STAND_IN = Path(__file__).parent / "fake_tensorrt"
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
WARNINGS = "-Wall -Wextra -Wpedantic -Werror"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program said."""

    code: int
    stdout: str
    stderr: str

    @property
    def tokens(self) -> list[int]:
        """The ids on stdout."""
        assert self.code == 0, self.stderr
        return [int(word) for word in self.stdout.split(",")]


@dataclasses.dataclass(frozen=True)
class Program:
    """A built decoder, and what its environment has beside this one's."""

    path: Path
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, *arguments: object, stdin: str = "") -> Outcome:
        words = [str(self.path), *map(str, arguments)]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, input=stdin, timeout=300, env=environment
        )
        return Outcome(done.returncode, done.stdout, done.stderr)


def build_programs(factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs for OpenVINO and, on a stand-in, TensorRT; warnings are errors.

    All processes of a test run share one build.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cpp-build"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _build(folder)
            (folder / "done").touch()
    return folder


def _build(folder: Path) -> None:
    stand_in = folder / "libstandin.a"
    objects = []
    for source in sorted(STAND_IN.glob("*.cpp")):
        objects.append(str(folder / f"{source.stem}.o"))
        _run("c++", "-std=c++17", "-O1", *WARNINGS.split(), "-c", str(source), "-o", objects[-1])
    _run("ar", "rcs", str(stand_in), *objects)
    prefixes = ";".join(str(SITE_PACKAGES / name) for name in ("openvino", "nlohmann_json"))
    sdk = {"TENSORRT_INCLUDE_DIR": STAND_IN, "TENSORRT_LIBRARY": stand_in}
    cuda = {"CUDA_INCLUDE_DIR": STAND_IN, "CUDART_LIBRARY": stand_in}
    # -O1: most of the time goes into headers, and what is tested is tiny.
    flags = {"CMAKE_BUILD_TYPE": "", "CMAKE_CXX_FLAGS": f"-O1 {WARNINGS}", "CMAKE_PREFIX_PATH": prefixes}
    settings = [f"-D{name}={value}" for name, value in {**flags, **sdk, **cuda}.items()]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run("cmake", *generator, "-S", str(SOURCE), "-B", str(folder), *settings)
    _run("cmake", "--build", str(folder), "--parallel", "2")


def missing() -> str:
    """Why the programs cannot be built here; empty where they can."""
    tools = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    packages = [name for name in ("openvino", "nlohmann_json") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(tools + packages)}" if tools or packages else ""


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def toy_bundle(
    folder: Path, drop: Sequence[int] = (), *, mask: bool = True, eos: int = 99, seed: int = 7, **how: Any
) -> Bundle:
    """A bundle of a toy decoder with three layers, caches [batch, past, 12] and no position input."""
    model = toy_decoder(seed=seed)
    next(value for value in model.graph.inputs if value.name == "tokens").name = "input_ids"
    _make_causal(model)
    if not mask:
        # A constant that hides nothing, of a shape that fits every step.
        value = next(value for value in model.graph.inputs if value.name == "attention_mask")
        model.graph.inputs.remove(value)
        value.shape, value.const_value = ir.Shape([1, 1]), ir.tensor(np.ones((1, 1), np.int64), name=value.name)
        model.graph.initializers["attention_mask"] = value
    source = folder / "source"
    source.mkdir(parents=True)
    ir.save(model, source / "model.onnx")
    config = {"vocab_size": 11, "max_position_embeddings": 16, "eos_token_id": eos}
    (source / "config.json").write_text(json.dumps(config))
    return bundle_of(source, folder, drop, **how)


def _make_causal(model: ir.Model) -> None:
    """Let a toy's tokens see what is before them only; a bundle is refused without."""
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    weights, bias = graph.initializers, values["bias_mask"]
    tape = ir.tape.Tape()
    ends = [tape.op("Squeeze", [values[name]]) for name in ("past_length", "total_length")]
    none, step = (tape.op("Constant", [], {"value_int": number}) for number in (0, 1))
    rows = tape.op("Unsqueeze", [tape.op("Range", [*ends, step]), values["one_index"]])
    ahead = tape.op("Greater", [tape.op("Range", [none, ends[1], step]), rows])
    hidden = tape.op("Mul", [tape.op("Cast", [ahead], {"to": 1}), weights["far"]])
    causal = tape.op("Add", [bias, hidden])
    place, users = bias.producer(), list(bias.uses())
    assert place is not None
    graph.insert_after(place, tape.nodes)
    for node, index in users:
        if node not in tape.nodes:
            node.replace_input_with(index, causal)


def bundle_of(source: Path, folder: Path, drop: Sequence[int] = (), **how: Any) -> Bundle:
    """The graph in ``source``, pruned, as a bundle without tokenizer."""
    if drop:
        prune_graph(source / "model.onnx", folder / "pruned", layers=tuple(drop), **how)
        source = folder / "pruned"
    make_bundle(BundleRequest(source=source, out=folder / "bundle", tokenizer=False))
    return open_bundle(folder / "bundle")


def change(bundle: Bundle, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest's JSON and seal it again, as a writer with other ideas would have written it."""
    path = bundle.folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    content["seal"] = UNSEALED
    opened = json.dumps(content, indent=2)
    path.write_text(opened.replace(UNSEALED, hashlib.sha256(opened.encode()).hexdigest(), 1))


def greedy(bundle: Bundle, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The same decoding in Python on ONNX Runtime."""
    graph, decoding = bundle.graph_path, bundle.manifest.decoding
    assert graph is not None
    assert decoding is not None
    stepper = Stepper(open_graph(graph), decoding)
    stepper.begin()
    tokens = [int(stepper.step(list(prompt))[-1].argmax())]
    while len(tokens) < max_tokens and tokens[-1] not in decoding.eos_token_ids:
        tokens.append(int(stepper.step([tokens[-1]])[-1].argmax()))
    return tokens
