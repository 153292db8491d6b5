"""A bundle in real clients: optimum and onnxruntime-genai load the folder as it is and give the framework's tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundle_cases import files_of
from clients import framework_tokens, genai_tokens, optimum_tokens, same_tokens
from model_zoo import make_tokenizer, row
from test_comparing import WORDS

from gatenorm_export.bundling import BundleRequest, VerifyRequest, make_bundle, open_bundle, verify_bundle
from gatenorm_export.bundling.genai import genai_config
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode
from gatenorm_export.exporting import export_model
from gatenorm_export.model_configs import ModelConfigs
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import CacheTensor, Decoding
from gatenorm_export.sources import resolve_model

PROMPT = [5, 9, 17, 33, 21]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a finished run of it, and the bundle that the run made."""
    folder = tmp_path_factory.mktemp("clients")
    row("llama-gqa").save(folder / "model")
    (folder / "text.txt").write_text(WORDS.content)
    run = ["run", folder / "model", "--drop", "2", "--out", folder / "out", "--bundle", folder / "bundle"]
    options = ["--flavour", "none", "--no-latency", "--quiet", "--json", "--text", folder / "text.txt"]
    assert main([str(argument) for argument in [*run, *options]]) == 0
    return folder


def test_a_run_becomes_a_bundle_that_clients_load(bundled: Path) -> None:
    bundle = open_bundle(bundled / "bundle")
    names = {file.name for file in bundle.manifest.files}
    assert {"report/report.html", "records/plan.json", "records/scores.json", "records/compare.json"} <= names
    assert {client.reason for client in bundle.manifest.clients} == {""}
    assert bundle.manifest.model is not None
    assert bundle.manifest.model.name == "model"
    expected = framework_tokens(str(bundled / "model"), bundle.manifest.dropped, PROMPT, 8)
    assert len(expected) > len(PROMPT)
    assert optimum_tokens(bundled / "bundle", PROMPT, 8) == expected
    assert same_tokens(genai_tokens(bundled / "bundle", PROMPT, 8), expected, (1,))


def test_a_bundle_without_a_place_lies_in_the_runs_folder(bundled: Path) -> None:
    run = ["run", bundled / "model", "--drop", "2", "--out", bundled / "out", "--bundle"]
    options = ["--flavour", "none", "--no-latency", "--quiet", "--text", bundled / "text.txt"]
    assert main([str(argument) for argument in [*run, *options]]) == 0
    assert files_of(bundled / "out" / "bundle") == files_of(bundled / "bundle")


def test_faithfulness_is_proved_anew_where_the_model_is_at_hand(bundled: Path, tmp_path: Path) -> None:
    found = verify_bundle(VerifyRequest(bundled / "bundle", model=str(bundled / "model"))).checks[-1]
    assert (found.check, found.passed) == ("faithfulness", True)
    row("llama-gqa").save(tmp_path / "other", seed=1)
    found = verify_bundle(VerifyRequest(bundled / "bundle", model=str(tmp_path / "other"))).checks[-1]
    assert found.passed is False
    assert "is not the checkpoint" in found.finding


def test_a_run_that_misses_a_limit_leaves_the_old_bundle(bundled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (bundled / "bundle" / "manifest.json").read_bytes()
    run = ["run", bundled / "model", "--drop", "2", "--out", bundled / "out", "--bundle", bundled / "bundle"]
    options = [
        "--flavour",
        "none",
        "--no-latency",
        "--json",
        "--text",
        bundled / "text.txt",
        "--max-ppl-ratio",
        "0.001",
    ]
    assert main([str(argument) for argument in [*run, *options]]) == ExitCode.THRESHOLD
    captured = capfd.readouterr()
    assert json.loads(captured.out)["bundle"] is None
    assert "bundle: not made" in captured.err
    assert (bundled / "bundle" / "manifest.json").read_bytes() == before
    same = ["run", bundled / "model", "--drop", "2", "--out", bundled / "out", "--bundle", bundled / "out", "-q"]
    assert main([str(argument) for argument in same]) == ExitCode.OUTPUT


def test_a_run_whose_proof_failed_is_not_bundled(bundled: Path, tmp_path: Path, capfd) -> None:
    import shutil

    shutil.copytree(bundled / "out", tmp_path / "out")
    path = tmp_path / "out" / "compare.json"
    content = json.loads(path.read_text())
    content["faithfulness"]["passed"] = False
    path.write_text(json.dumps(content))
    assert main(["bundle", str(tmp_path / "out"), "-o", str(tmp_path / "b"), "-q"]) == ExitCode.REFUSED
    assert "does not compute what it should" in capfd.readouterr().err


@pytest.mark.parametrize("layers", [(0, 2), (0, 1, 2, 3)], ids=str)
def test_caches_that_keep_their_numbers_and_graphs_without_any(layers, exported, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    prune_graph(graph, tmp_path / "pruned", layers=layers, kv_names="keep")
    manifest = make_bundle(BundleRequest(tmp_path / "pruned", tmp_path / "bundle"))
    assert manifest.probe is not None
    assert manifest.decoding is not None
    assert len(manifest.decoding.caches) == 2 * (4 - len(layers))
    prompt, answer = list(manifest.probe.prompt), list(manifest.probe.answer)
    end = next((place for place, token in enumerate(answer) if token == 1), len(answer))
    assert genai_tokens(tmp_path / "bundle", prompt, len(answer))[: len(prompt) + end] == [*prompt, *answer[:end]]


def decoding(*caches: CacheTensor, **changes: Any) -> Decoding:
    fields: dict[str, Any] = {
        "token_input": "input_ids", "mask_input": "attention_mask", "position_input": None, "logits_output": "logits",
        "caches": caches, "vocab_size": 50, "max_positions": 64, "bos_token_id": None, "eos_token_ids": (7, 8),
        "pad_token_id": None,
    }  # fmt: skip
    return Decoding(**(fields | changes))


def cache(number: int, role: str = "key", **changes: Any) -> CacheTensor:
    fields: dict[str, Any] = {
        "layer": number, "past": f"past.{number}.{role}", "present": f"present.{number}.{role}", "role": role,
        "dtype": "float32", "shape": ("b", 2, "p", 16), "batch_axis": 0, "length_axis": 2,
    }  # fmt: skip
    return CacheTensor(**(fields | changes))


def pair(number: int, **changes: Any) -> tuple[CacheTensor, CacheTensor]:
    return cache(number, "key", **changes), cache(number, "value", **changes)


NOTHING = ModelConfigs({}, {}, {})


def test_genais_description_is_read_off_the_signature() -> None:
    config = genai_config("model.onnx", decoding(*pair(0), *pair(1)), ModelConfigs({"n_head": 4}, {"top_k": 5}, {}), 6)
    assert isinstance(config, dict)
    decoder = config["model"]["decoder"]
    assert decoder["inputs"] == {
        "input_ids": "input_ids", "attention_mask": "attention_mask",
        "past_key_names": "past.%d.key", "past_value_names": "past.%d.value",
    }  # fmt: skip
    sizes = ("num_hidden_layers", "num_key_value_heads", "head_size", "num_attention_heads")
    assert [decoder[name] for name in sizes] == [2, 2, 16, 4]
    assert (config["model"]["eos_token_id"], config["model"]["pad_token_id"]) == ([7, 8], 7)
    assert config["search"] == {"do_sample": False, "top_k": 5, "max_length": 64, "past_present_share_buffer": False}
    kept = genai_config("model.onnx", decoding(*pair(0), *pair(4)), NOTHING, 6)
    assert isinstance(kept, dict)
    assert kept["model"]["decoder"]["num_hidden_layers"] == 6


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (decoding(*pair(0), mask_input=None), "takes no mask"),
        (decoding(*pair(0), max_positions=None), "how long a sequence"),
        (decoding(*pair(0), eos_token_ids=()), "ends a sequence"),
        (decoding(cache(0, "other")), "one key and one value"),
        (decoding(*pair(0, shape=("p", "b", 16), batch_axis=1, length_axis=0)), r"not \[batch, heads, past, size\]"),
        (decoding(*pair(0), *pair(1, shape=("b", 4, "p", 16))), "its caches differ"),
        (decoding(*pair(0, shape=("b", "h", "p", 16))), "no fixed number and size"),
        (decoding(cache(0), cache(0, "value", past="p.1.value")), "not numbered alike"),
    ],
)
def test_what_genai_does_not_take_is_said(given: Decoding, reason: str) -> None:
    import re

    found = genai_config("model.onnx", given, NOTHING, 6)
    assert isinstance(found, str)
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("family", "graph", "task"),
    [
        ("bert", "model.onnx", "encoder"),
        ("vit", "model.onnx", "vision"),
        ("whisper", "decoder_model_merged.onnx", "speech"),
    ],
)
def test_what_is_no_decoder_is_bundled_and_probed_too(family: str, graph: str, task: str, tmp_path: Path) -> None:
    from benchmarks.matrix.models import FAMILIES

    made = next(row for row in FAMILIES if row.name == family).make()
    made.save_pretrained(tmp_path / "model")
    if task != "vision":
        make_tokenizer().save_pretrained(tmp_path / "model")
    tower = "decoder" if task == "speech" else ""
    export_model(resolve_model(str(tmp_path / "model")), tmp_path / "base", tower=tower)
    prune_graph(tmp_path / "base" / graph, tmp_path / "pruned", layers=(1,))
    manifest = make_bundle(BundleRequest(tmp_path / "pruned", tmp_path / "bundle"))
    assert (manifest.task, manifest.decoding, len(manifest.companions)) == (task, None, int(task == "speech"))
    assert "it is no decoder" in manifest.no_decoding
    assert manifest.probe is not None
    assert manifest.probe.answer
    found = verify_bundle(VerifyRequest(tmp_path / "bundle"))
    assert {check.check: check.passed for check in found.checks} == dict.fromkeys(
        ("manifest", "files", "signature", "load", "probe"), True
    )
    make_bundle(BundleRequest(tmp_path / "bundle", tmp_path / "again"))
    assert files_of(tmp_path / "again") == files_of(tmp_path / "bundle")
