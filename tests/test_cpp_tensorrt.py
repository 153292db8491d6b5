"""The C++ decoder of engines, on a stand-in of TensorRT: profiles, buffers, streams, and everything that is checked
before an engine runs. What the stand-in computes shows whether the cache went round whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cpp_programs
import pytest
from cpp_programs import Program, change, toy_bundle

from gatenorm_export.building import ShapeRequest, make_profiles
from gatenorm_export.bundling import Bundle

pytestmark = pytest.mark.skipif(bool(cpp_programs.missing()), reason=cpp_programs.missing())

VOCABULARY = 11
IDS = "3,1,4,1,5"
PROMPT = (3, 1, 4, 1, 5)
PROMPT_LIMIT, CONTEXT = 6, 15


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(cpp_programs.build_programs(tmp_path_factory) / "gatenorm-decode-tensorrt")


@pytest.fixture
def decode(program: Program, tmp_path: Path) -> Program:
    return dataclasses.replace(program, environment={"FAKE_TENSORRT_REPORT": str(tmp_path / "report.json")})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The toy decoder without layer 1, whose engine is one of the stand-in's."""
    made = toy_bundle(tmp_path, (1,))
    add_engine(made, "toy")
    return made


def add_engine(bundle: Bundle, name: str, **differs: Any) -> None:
    """Put an engine into a bundle as gatenorm lists it, with bounds as gatenorm build makes them."""
    graph = bundle.graph_path
    assert graph is not None
    profiles = make_profiles(graph, ShapeRequest(prompt=PROMPT_LIMIT, context=CONTEXT))
    content = json.loads((bundle.folder / "manifest.json").read_text())
    entry = {
        "file": f"engines/{name}.engine",
        "record": f"engines/{name}.engine.json",
        "flavour": "tensorrt",
        "flavour_version": "11.1.0.106",
        "gpu": None,
        "capabilities": ["8.9"],
        "precision": "fp32",
        "profiles": [profile.model_dump(mode="json") for profile in profiles],
        "inputs": content["graph"]["inputs"],
        "outputs": content["graph"]["outputs"],
        "not_reproducible": "",
        **differs,
    }
    place = bundle.folder / "engines" / f"{name}.engine"
    place.parent.mkdir(exist_ok=True)
    place.write_text(_plan(entry))
    file = {"name": entry["file"], "bytes": place.stat().st_size, "role": "engine", "sha256": _digest(place)}

    def listed(manifest: dict[str, Any]) -> None:
        manifest["engines"].append(entry)
        manifest["files"].append(file)

    change(bundle, listed)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plan(entry: dict[str, Any]) -> str:
    """An engine of the stand-in: a line for each tensor and for each bound."""
    lines = []
    for kind in ("input", "output"):
        for spec in entry[f"{kind}s"]:
            lengths = [length if isinstance(length, int) else -1 for length in spec["shape"]]
            lines.append([kind, spec["name"], spec["dtype"], len(lengths), *lengths])
    for index, profile in enumerate(entry["profiles"]):
        for bound in profile["bounds"]:
            lines.append(["bounds", index, bound["input"], *bound["min"], *bound["opt"], *bound["max"]])
    return "".join(" ".join(map(str, line)) + "\n" for line in lines)


def expected(prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What the stand-in answers when every cache holds the whole text."""
    text = list(prompt)
    for _ in range(max_tokens):
        text.append(sum((place + 1) * token for place, token in enumerate(text)) % VOCABULARY)
    return text[len(prompt) :]


def report(tmp_path: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((tmp_path / "report.json").read_text())
    return found


def test_the_cache_goes_round_on_the_device(decode: Program, bundle: Bundle, tmp_path: Path) -> None:
    done = decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 9)
    assert done.tokens == expected(PROMPT, 9)
    assert done.stderr.startswith("tensorrt 11.1.0.106, toy.engine\n")
    # Nine rows of logits in fp32 came to the host and nothing else; prefill, then decode; everything was freed.
    assert report(tmp_path) == {
        "bytes_to_host": 9 * VOCABULARY * 4,
        "profile_switches": 2,
        "live_buffers": 0,
        "live_streams": 0,
    }


@pytest.mark.parametrize("length", [1, 2, 6, 7, 11, 12, 13])
def test_prompts_of_every_length_that_the_profiles_reach(decode: Program, bundle: Bundle, length: int) -> None:
    prompt = [(3 * place) % VOCABULARY for place in range(length)]
    done = decode(bundle.folder, "--prompt-ids", ",".join(map(str, prompt)), "--max-tokens", 3)
    assert done.tokens == expected(prompt, 3)


def test_the_whole_context_and_one_more(decode: Program, bundle: Bundle) -> None:
    assert decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 11).tokens == expected(PROMPT, 11)
    done = decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 12)
    assert (done.code, done.stdout) == (5, "")
    assert f"takes {CONTEXT} tokens in all; an engine is built for more with --prompt and --context" in done.stderr


def test_engines_are_chosen_by_name(decode: Program, bundle: Bundle) -> None:
    add_engine(bundle, "other")
    add_engine(bundle, "foreign", flavour="tensorrt-rtx")
    _fails(decode(bundle.folder, "--prompt-ids", IDS), 3, "name one engine with --engine; it has engines/toy.engine")
    for name in ("other", "other.engine", "engines/other.engine"):
        assert decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 2, "--engine", name).tokens == expected(
            PROMPT, 2
        )
    _fails(decode(bundle.folder, "--prompt-ids", IDS, "--engine", "none"), 3, "the bundle has no engine none")
    _fails(decode(bundle.folder, "--prompt-ids", IDS, "--engine", "foreign"), 5, "is an engine of tensorrt-rtx")


def test_a_bundle_without_engines(decode: Program, tmp_path: Path) -> None:
    made = toy_bundle(tmp_path)
    _fails(decode(made.folder, "--prompt-ids", IDS), 3, "has no engine of tensorrt; it has none")


@pytest.mark.parametrize(
    ("gpu", "listed", "says"),
    [
        ("none", ["8.9"], "needs an NVIDIA GPU, and CUDA finds none (no CUDA-capable device is detected)"),
        ("9.0", ["8.6", "8.9"], "was built for compute capability 8.6, 8.9, and this GPU has 9.0; build it again"),
        ("8.9", ["12.0+"], "was built for compute capability 12.0+, and this GPU has 8.9"),
        ("12.1", ["8.0", "12.0+"], ""),
        ("10.3", [], ""),
    ],
    ids=str,
)
def test_gpus(decode: Program, bundle: Bundle, gpu: str, listed: list[str], says: str) -> None:
    change(bundle, lambda manifest: manifest["engines"][0].update(capabilities=listed))
    decode.environment["FAKE_GPU"] = gpu
    done = decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 2)
    if says:
        _fails(done, 5, says)
    else:
        assert done.tokens == expected(PROMPT, 2)


def test_too_little_memory(decode: Program, bundle: Bundle, tmp_path: Path) -> None:
    decode.environment["FAKE_GPU_BYTES"] = "100"
    _fails(decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 9), 1, "bytes of device memory (out of memory)")
    assert report(tmp_path)["live_buffers"] == 0


def _engine(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["engines"][0].update(changes)


def _other_bound(manifest: dict[str, Any]) -> None:
    manifest["engines"][0]["profiles"][1]["bounds"][0]["max"][1] += 1


def _one_profile(manifest: dict[str, Any]) -> None:
    del manifest["engines"][0]["profiles"][1]


def _no_bound(manifest: dict[str, Any]) -> None:
    del manifest["engines"][0]["profiles"][0]["bounds"][-1]


def _half_caches(manifest: dict[str, Any]) -> None:
    entry = manifest["engines"][0]
    for kind in ("inputs", "outputs"):
        entry[kind] = [spec | {"dtype": "float16"} if "_" in spec["name"] else spec for spec in entry[kind]]


@pytest.mark.parametrize(
    ("edit", "code", "says"),
    [
        (_engine(flavour_version="10.9.0.34"), 5, "was built by tensorrt 10.9.0.34, and this is 11.1.0.106"),
        (_engine(flavour="tensorrt-rtx"), 3, "has no engine of tensorrt; it has engines/toy.engine (tensorrt-rtx"),
        (_other_bound, 3, "its profile 1 has other bounds for input_ids than the manifest"),
        (_one_profile, 3, "has 2 optimisation profiles, and 1 by the manifest"),
        (_no_bound, 3, "profile prefill has no bounds for one sequence of input past_1_value"),
        (_half_caches, 3, "in the file, and float16 by the manifest"),
        (lambda manifest: manifest["decoding"]["caches"].pop(), 3, "does not say what input past_1_value is for"),
    ],
    ids=["version", "flavour", "bounds", "profiles", "no bounds", "types", "caches"],
)
def test_a_manifest_that_does_not_fit_the_engine(
    decode: Program, bundle: Bundle, edit: Callable[[dict[str, Any]], None], code: int, says: str
) -> None:
    change(bundle, edit)
    _fails(decode(bundle.folder, "--prompt-ids", IDS), code, says)


def test_an_engine_that_was_touched(decode: Program, bundle: Bundle) -> None:
    engine = bundle.folder / "engines" / "toy.engine"
    content = engine.read_text()
    engine.write_text(content.replace("input_ids", "input_idx", 1))
    _fails(decode(bundle.folder, "--prompt-ids", IDS), 13, "its sha256 is")
    engine.write_text("x" * len(content))
    done = decode(bundle.folder, "--prompt-ids", IDS, "--no-digests")
    _fails(done, 3, "tensorrt cannot load it (the engine begins with unknown bytes)")
    engine.unlink()
    _fails(decode(bundle.folder, "--prompt-ids", IDS), 3, "toy.engine: cannot be read")


def _fails(outcome: cpp_programs.Outcome, code: int, says: str) -> None:
    assert outcome.code == code, outcome
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("gatenorm-decode-tensorrt: ")
    assert outcome.stderr.count("\n") == 1
    assert says in outcome.stderr
