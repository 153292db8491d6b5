"""The C++ decoder on OpenVINO, compiled here: token for token what Python gets from the same bundle; and its errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpp_programs
import pytest
from cpp_programs import Program, bundle_of, change, greedy, toy_bundle

from gatenorm_export.bundling import Bundle
from gatenorm_export.precision import prepare_graph
from gatenorm_export.records import ExportedGraph, ModelSpec

pytestmark = pytest.mark.skipif(bool(cpp_programs.missing()), reason=cpp_programs.missing())

PROMPT = (3, 1, 4, 1, 5)
IDS = "3,1,4,1,5"

Exported = Callable[[str], tuple[ModelSpec, Path, ExportedGraph]]


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(cpp_programs.build_programs(tmp_path_factory) / "gatenorm-decode-openvino")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: Bundle, tmp_path: Path) -> Bundle:
    """A bundle to spoil."""
    shutil.copytree(whole.folder, tmp_path / "bundle")
    return Bundle(tmp_path / "bundle", whole.manifest)


@pytest.mark.parametrize(
    ("drop", "how", "n_caches"),
    [
        ((), {}, 6),
        ((1,), {}, 4),
        ((0, 2), {"kv_names": "keep"}, 2),
        ((0, 1, 2), {}, 0),
        ((1,), {"mask": False}, 4),
    ],
    ids=str,
)
def test_tokens_are_those_of_python(
    decode: Program, tmp_path: Path, drop: tuple[int, ...], how: dict[str, Any], n_caches: int
) -> None:
    bundle = toy_bundle(tmp_path, drop, **how)
    decoding = bundle.manifest.decoding
    assert decoding is not None
    assert len(decoding.caches) == n_caches
    assert (decoding.mask_input is None) == ("mask" in how)
    expected = greedy(bundle, PROMPT, 9)
    assert len(set(expected)) > 1
    assert decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 9).tokens == expected


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_exported_decoder_with_positions(
    decode: Program, exported: Exported, tmp_path: Path, precision: str
) -> None:
    _, graph, _ = exported("llama-gqa")
    source = graph.parent
    if precision == "fp16":
        prepare_graph(graph, tmp_path / "half", flavour="tensorrt", precision="fp16", measured=False)
        source = tmp_path / "half"
        shutil.copy(graph.parent / "config.json", source)
    bundle = bundle_of(source, tmp_path, (1,))
    decoding = bundle.manifest.decoding
    assert decoding is not None
    assert decoding.position_input == "position_ids"
    assert {cache.dtype for cache in decoding.caches} == {"float32" if precision == "fp32" else "float16"}
    assert decode(bundle.folder, "--prompt-ids", IDS, "--max-tokens", 12).tokens == greedy(bundle, PROMPT, 12)


def test_an_end_token_ends(decode: Program, whole: Bundle, tmp_path: Path) -> None:
    free = greedy(whole, PROMPT, 9)
    bundle = toy_bundle(tmp_path, eos=free[2])
    stop = free.index(free[2]) + 1
    done = decode(bundle.folder, "--prompt-ids", "-", "--max-tokens", 9, "--json", stdin="3 1 4\n1, 5\n")
    said = json.loads(done.stdout)
    assert (said["tokens"], said["stopped"], said["prompt_tokens"]) == (free[:stop], "end token", 5)
    assert said["runtime"].startswith("OpenVINO 20")


def test_ids_on_stdout_and_times_on_stderr(decode: Program, whole: Bundle) -> None:
    done = decode(whole.folder, "--prompt-ids", IDS, "--max-tokens", 3)
    assert len(done.tokens) == 3
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["OpenVINO", "load", "prefill", "decode"]
    assert decode(whole.folder, "--prompt-ids", IDS, "--max-tokens", 3, "--quiet").stderr == ""
    assert "--prompt-ids" in decode("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no bundle is named"),
        (["B"], 2, "no prompt is given"),
        (["B", "--prompt-ids", "1,x"], 2, "'x' is no whole number"),
        (["B", "--prompt-ids", "1", "--max-tokens", "0"], 2, "--max-tokens is to be 1 or more"),
        (["B", "--prompt-ids", "1", "--fast"], 2, "no such option: --fast"),
        (["B", "--prompt-ids", "1", "--max-tokens"], 2, "needs a value"),
        (["NONE", "--prompt-ids", "1"], 3, "manifest.json: cannot be read"),
        (["B", "--prompt-ids", ","], 5, "the prompt has no tokens"),
        (["B", "--prompt-ids", "1,11"], 5, "the model's vocabulary has 11"),
        (["B", "--prompt-ids", "1,2", "--max-tokens", "16"], 5, "the model has 16 positions"),
        (["B", "--prompt-ids", "1,2", "--engine", "pruned"], 5, "--engine is for TensorRT"),
    ],
    ids=str,
)
def test_wrong_commands(decode: Program, whole: Bundle, arguments: list[str], code: int, says: str) -> None:
    places = {"B": str(whole.folder), "NONE": str(whole.folder / "nothing")}
    _fails(decode(*(places.get(word, word) for word in arguments)), code, says)


def test_the_longest_sequence_that_the_model_takes(decode: Program, whole: Bundle) -> None:
    assert decode(whole.folder, "--prompt-ids", "1,2", "--max-tokens", 15).tokens == greedy(whole, (1, 2), 15)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def _link(path: Path) -> None:
    outside = path.parent.parent / path.name
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("file", "spoil", "code", "says"),
    [
        ("model.onnx", Path.unlink, 3, "model.onnx: cannot be read"),
        ("model.onnx", _truncate, 13, "by the manifest; copy the bundle again"),
        ("model.onnx", _flip, 13, "its sha256 is"),
        ("model.onnx", _link, 3, "is a link out of the bundle's folder"),
        ("manifest.json", _truncate, 3, "is no JSON"),
        ("manifest.json", lambda path: path.write_text("{}"), 3, "manifest has no kind"),
        ("manifest.json", lambda path: path.write_text("[" * 100_000), 3, "is no JSON"),
    ],
    ids=["missing", "truncated", "flipped", "link", "half a manifest", "empty manifest", "deep manifest"],
)
def test_spoiled_files(
    decode: Program, copy: Bundle, file: str, spoil: Callable[[Path], Any], code: int, says: str
) -> None:
    spoil(copy.folder / file)
    _fails(decode(copy.folder, "--prompt-ids", IDS), code, says)


def test_without_digests_sizes_still_count(decode: Program, copy: Bundle) -> None:
    _truncate(copy.folder / "model.onnx")
    _fails(decode(copy.folder, "--prompt-ids", IDS, "--no-digests"), 13, "by the manifest; copy the bundle again")


def test_a_manifest_that_somebody_edited(decode: Program, copy: Bundle) -> None:
    manifest = copy.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"vocab_size": 11', '"vocab_size": 12'))
    _fails(decode(copy.folder, "--prompt-ids", IDS), 13, "was changed since it was written")


def _decoding(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["decoding"].update(changes)


def _first_cache(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["decoding"]["caches"][0].update(changes)


def _half_precision(manifest: dict[str, Any]) -> None:
    for side, name in (("inputs", "past_0_key"), ("outputs", "present_0_key")):
        next(spec for spec in manifest["graph"][side] if spec["name"] == name)["dtype"] = "float16"


@pytest.mark.parametrize(
    ("edit", "code", "says"),
    [
        (_decoding(token_input="tokens"), 3, "has no tensor tokens"),
        (_decoding(mask_input=None), 3, "does not say what input attention_mask is for"),
        (_decoding(logits_output="scores"), 3, "has no tensor scores"),
        (_first_cache(past="past_9_key"), 3, "has no tensor past_9_key"),
        (_first_cache(shape=["b", 8, 12]), 5, "has a fixed length"),
        (_first_cache(shape=["b", "p", "size"]), 3, "has a length of no known size, size"),
        (_first_cache(length_axis=7), 3, "caches[0].length_axis is no axis of its shape"),
        (_half_precision, 3, "past_0_key is float32 in the file, and float16 by the manifest"),
        (lambda manifest: manifest.update(schema=2), 3, "manifest.schema is 2, and these programs read 1"),
        (lambda manifest: manifest.update(kind="pruned"), 3, "gatenorm bundle makes one"),
        (lambda manifest: manifest["graph"].update(file="../model.onnx"), 3, "names a file outside of it"),
        (lambda manifest: manifest["graph"].update(file="other.onnx"), 3, "lists no file other.onnx"),
        (lambda manifest: manifest.update(decoding=None), 3, "holds no decoder over tokens"),
        (lambda manifest: manifest.update(graph=None), 3, "holds no graph, only engines"),
    ],
    ids=[
        *(
            "tokens",
            "mask",
            "logits",
            "cache",
            "fixed",
            "open",
            "axis",
            "dtype",
            "schema",
            "kind",
            "outside",
            "unlisted",
        ),
        *("no decoder", "no graph"),
    ],
)
def test_a_manifest_that_does_not_fit(
    decode: Program, copy: Bundle, edit: Callable[[dict[str, Any]], None], code: int, says: str
) -> None:
    change(copy, edit)
    _fails(decode(copy.folder, "--prompt-ids", IDS), code, says)


def _fails(outcome: cpp_programs.Outcome, code: int, says: str) -> None:
    assert outcome.code == code, outcome
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("gatenorm-decode-openvino: ")
    assert outcome.stderr.count("\n") == 1
    assert says in outcome.stderr
