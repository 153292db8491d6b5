"""A bundle that was forged and sealed anew: its manifest and files are held against the graph and each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_cases import toy_bundle
from model_zoo import row
from test_verify import assert_found_when_forged, checks_of, reseal, rewrite

from gatenorm_export.bundling import BundleRequest, make_bundle
from gatenorm_export.bundling.opening import reproducible_digest
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError
from gatenorm_export.exporting import export_model
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import BundleManifest
from gatenorm_export.sources import resolve_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("forged"))


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def decoding(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["decoding"].update(fields)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (decoding(mask_input=None), "input for mask is none, and the graph's is attention_mask"),
        (decoding(mask_input="input_ids"), "input for mask is input_ids, and the graph's is attention_mask"),
        (decoding(position_input="position_ids"), "input for positions is position_ids, and the graph's is none"),
        (decoding(token_input="tokens"), "input for tokens is tokens, and the graph's is input_ids"),
        (decoding(logits_output="scores"), "logits, scores, are no output"),
    ],
)
def test_what_the_graph_is_fed_is_told_for_every_input(
    change: Callable[[dict[str, Any]], None], finding: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_found_when_forged(bundle, change, finding)
    capfd.readouterr()
    # Neither does it become a model that answers every request with an error.
    assert main(["triton", str(bundle), "-o", str(bundle.parent / "models"), "-q"]) == ExitCode.TAMPERED
    said = capfd.readouterr().err
    assert finding in said
    assert said.count("\n") == 1
    assert not (bundle.parent / "models").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a pruned model of transformers, which both clients load."""
    folder = tmp_path_factory.mktemp("exported")
    row("llama-gqa").save(folder / "model")
    export_model(resolve_model(str(folder / "model")), folder / "base")
    prune_graph(folder / "base" / "model.onnx", folder / "pruned", layers=(1,))
    make_bundle(BundleRequest(folder / "pruned", folder / "bundle"))
    return folder / "bundle"


@pytest.fixture
def real(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda content: content.update(layer_map={"0": 0, "1": None, "2": 2, "3": 1}), "layer numbers are not"),
        (lambda content: content["graph"].update(precision="fp16"), "precision is not the graph's"),
        (lambda content: content["graph"].update(opset=11), "opset is not the graph's"),
        (lambda content: content.update(parent_sha256="1" * 64), "parent_sha256 is not that of the graph's record"),
        (lambda content: content.update(plan_sha256="1" * 64), "plan_sha256 is not that of the graph's record"),
        (lambda content: content.update(kv_names="keep"), "kv_names is not that of the graph's record"),
        (lambda content: content["model"].update(digest="1" * 64), "model digest is not that of the graph's record"),
        (decoding(eos_token_ids=[77]), "tokens that end a sequence are not what graph and configs tell"),
        (decoding(eos_token_ids=[]), "tokens that end a sequence are not what graph and configs tell"),
        (decoding(bos_token_id=10**9), "token that begins a sequence of 1,000,000,000 is not"),
        (decoding(pad_token_id=7), "token for padding of 7 is not"),
        (
            lambda content: content.update(decoding=None, no_decoding="it is odd"),
            "does not tell how the graph is stepped",
        ),
        (lambda content: content.update(task="encoder"), "task is encoder, and the graph is of another"),
        (lambda content: content.update(task="vision", decoding=None), "task is vision, and the graph is of another"),
    ],
)
def test_a_manifest_that_is_not_true_of_graph_configs_and_record_is_found(
    change: Callable[[dict[str, Any]], None], finding: str, real: Path
) -> None:
    assert_found_when_forged(real, change, finding)
    assert main(["triton", str(real), "-o", str(real.parent / "models"), "-q"]) == ExitCode.TAMPERED


@pytest.mark.parametrize(
    ("name", "place", "fields", "finding"),
    [
        ("genai_config.json", ("model", "decoder"), {"num_key_value_heads": 99}, "another num_key_value_heads than"),
        ("genai_config.json", ("model", "decoder"), {"num_hidden_layers": 99}, "another num_hidden_layers than"),
        ("genai_config.json", ("model", "decoder"), {"head_size": [16]}, "another head_size than"),
        ("config.json", (), {"num_hidden_layers": 99}, "config.json counts 99 layers, the manifest 4"),
        ("generation_config.json", (), {"eos_token_id": [77]}, "tokens that end a sequence are not what"),
        ("records/pruned.json", (), {"parent_sha256": "2" * 64}, "parent_sha256 is not that of the graph's record"),
        ("records/pruned.json", (), {"kind": "other"}, "not a PrunedGraph record"),
    ],
)
def test_a_file_that_is_not_true_of_the_graph_is_found(
    name: str, place: tuple[str, ...], fields: dict[str, Any], finding: str, real: Path
) -> None:
    content = json.loads((real / name).read_text())
    section = content
    for key in place:
        section = section[key]
    section.update(fields)
    (real / name).write_text(json.dumps(content))
    reseal(real, lambda _: None)
    passed, found = checks_of(real)["signature"]
    assert passed is False
    assert finding in found


@pytest.mark.parametrize(
    ("content", "finding"),
    [("{}", "is no tokenizer"), ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 7}}', "does not read it")],
)
def test_a_tokenizer_that_is_none_does_not_load(
    content: str, finding: str, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    (bundle / "tokenizer.json").write_text(content)
    reseal(bundle, lambda _: None)
    passed, found = checks_of(bundle)["load"]
    assert passed is False
    assert finding in found
    assert main(["verify", str(bundle), "-q"]) == ExitCode.BAD_INPUT
    assert "\n" not in capfd.readouterr().err.strip()


def test_the_digest_of_what_is_the_same_again_is_computed_anew(bundle: Path) -> None:
    rewrite(bundle, lambda content: content.update(reproducible_sha256="1" * 64))
    passed, found = checks_of(bundle)["manifest"]
    assert passed is False
    assert "reproducible_sha256 is not that of what it tells" in found
    assert main(["verify", str(bundle), "--files-only", "-q"]) == ExitCode.TAMPERED
    # Older ones have none, and lack what later versions tell.
    rewrite(bundle, lambda content: content.update(reproducible_sha256=None))
    assert checks_of(bundle)["manifest"][0] is True


def test_a_manifest_without_a_field_of_later_versions_keeps_its_digest(bundle: Path) -> None:
    read = BundleManifest.load(bundle / "manifest.json")
    assert reproducible_digest(read, as_read=True) == read.reproducible_sha256
    rewrite(bundle, lambda content: content.pop("companions"))
    old = BundleManifest.load(bundle / "manifest.json")
    assert reproducible_digest(old, as_read=True) != reproducible_digest(old)


def test_what_is_not_of_one_model_is_not_bundled(exported: Path, tmp_path: Path) -> None:
    pruned = shutil.copytree(exported.parent / "pruned", tmp_path / "pruned")
    content = json.loads((pruned / "config.json").read_text())
    (pruned / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 6}))
    with pytest.raises(
        InputError, match=r"what lies with the graph is not all of one model: config\.json counts 6 layers"
    ):
        make_bundle(BundleRequest(pruned, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_a_description_of_another_graph_tells_nothing_of_this_one(exported: Path, tmp_path: Path) -> None:
    """It stays out of the bundle, so what it says does too: else the bundle could not be held against itself."""
    pruned = shutil.copytree(exported.parent / "pruned", tmp_path / "pruned")
    foreign = {"model": {"bos_token_id": 99, "pad_token_id": 98, "decoder": {"filename": "other.onnx"}}}
    (pruned / "genai_config.json").write_text(json.dumps(foreign))
    for name in ("config.json", "generation_config.json"):
        told = json.loads((pruned / name).read_text())
        (pruned / name).write_text(json.dumps(told | {"pad_token_id": None}))
    manifest = make_bundle(BundleRequest(pruned, tmp_path / "bundle"))
    assert manifest.decoding is not None
    assert manifest.decoding.pad_token_id is None
    assert (
        "describes other.onnx, not model.onnx"
        in {client.name: client.reason for client in manifest.clients}["onnxruntime-genai"]
    )
    assert checks_of(tmp_path / "bundle")["signature"][0] is True
