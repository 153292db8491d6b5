"""Every command of the README and of the documentation, run in the order of the pages in one empty folder, on the real
SmolLM2; and what the run promises."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from documented import ROOT, commands, fences, pages, run

PYTHON_BLOCKS = [(page, number) for page in pages() for number in range(len(fences(page, "python")))]
BENCHMARKS = [
    command
    for language in ("console", "text")
    for _, command in commands(language)
    if command.startswith("python -m benchmarks.")
]

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder(documented_folder: Path) -> Path:
    return documented_folder


def test_the_set_up_commands_exist() -> None:
    """They make this very environment, so they are not run inside it: make's targets and the extras must exist."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    others = [(page, command) for page, command in commands() if not command.startswith("gatenorm ")]
    assert others
    for page, command in others:
        if command.startswith("make "):
            assert command.split()[1] in targets, page
        elif command.startswith("python -m benchmarks."):
            continue
        else:
            assert command.startswith("pip install torch==2.13.0 && pip install -e"), f"{page}: {command}"
            assert re.findall(r"\.\[(\w+)\]", command)[0] in extras


@pytest.mark.parametrize("module", sorted({line.split()[2] for line in BENCHMARKS}))
def test_benchmarks_take_what_the_pages_give_them(module: str) -> None:
    """They run for minutes and have tests of their own at small sizes: here, modules and options must exist."""
    done = run([sys.executable, "-m", module, "--help"], ROOT)
    assert done.returncode == 0, done.stderr
    for line in BENCHMARKS:
        if line.split()[2] == module:
            assert {word for word in line.split() if word.startswith("--") and word not in done.stdout} == set(), line


def test_the_main_job_keeps_its_promises(folder: Path) -> None:
    report = json.loads((folder / "out" / "report.json").read_text())
    comparison = report["comparison"]
    assert report["plan"]["drop"] == [19, 27, 28, 29]
    assert report["scores"]["layers"][0]["score"] == pytest.approx(3552.1, abs=0.1)
    assert comparison["faithfulness"]["passed"] is True
    assert comparison["faithfulness"]["max_abs_error"] < 1e-3
    assert comparison["quality"]["base_ppl"] < 40
    assert 1.0 < comparison["quality"]["ppl_ratio"] < 2.5
    latency = comparison["latency"]
    assert latency["decode_speedup_low"] <= latency["decode_speedup"] <= latency["decode_speedup_high"]
    base, pruned = comparison["base_sizes"]["facts"], comparison["pruned_sizes"]["facts"]
    assert pruned["kv_bytes_per_token"] / base["kv_bytes_per_token"] == pytest.approx(26 / 30)
    assert (base["n_attention"], pruned["n_attention"]) == (30, 26)


def test_engines_were_built_from_both_graphs(folder: Path) -> None:
    for name, tensors in (("base", 60), ("pruned", 52)):
        record = json.loads((folder / "out" / "engines" / f"{name}.engine.json").read_text())
        graph = folder / "out" / name / "model.onnx"
        assert (folder / "out" / "engines" / f"{name}.engine").stat().st_size == record["bytes"]
        assert (record["n_inputs"], record["n_outputs"]) == (3 + tensors, 1 + tensors)
        assert graph.is_file()


def test_single_verbs_give_the_same_graph_as_the_run(folder: Path) -> None:
    for name in ("base", "pruned"):
        manifests = [json.loads((folder / place / name / "manifest.json").read_text()) for place in ("out", "work")]
        digests = [{f["name"]: f["sha256"] for f in m["files"]}["model.onnx"] for m in manifests]
        assert digests[0] == digests[1]


def test_the_gate_of_the_pipeline_example_speaks_json(folder: Path) -> None:
    result = json.loads((folder / "compare.json").read_text())
    assert [threshold["passed"] for threshold in result["thresholds"]] == [True]


@pytest.mark.parametrize(("page", "number"), PYTHON_BLOCKS, ids=lambda value: getattr(value, "stem", value))
def test_the_python_examples_run(folder: Path, page: Path, number: int) -> None:
    done = run([sys.executable, "-c", fences(page, "python")[number]], folder)
    assert done.returncode == 0, done.stderr
    shown = {("surgery", 0): str(tuple(range(30))), ("surgery", 1): "(1, 3, 49152)"}
    assert shown.get((page.stem, number), "") in done.stdout


def test_pruned_folder_and_bundle_give_the_framework_s_tokens_in_both_clients(folder: Path) -> None:
    """Greedy tokens of optimum and onnxruntime-genai equal the framework's with those branches zeroed, from text on."""
    import onnxruntime_genai as og
    from clients import framework_tokens, genai_tokens, optimum_tokens, same_tokens
    from transformers import AutoTokenizer

    text, bundle = "The harbour master kept two clocks", folder / "bundle"
    prompt = AutoTokenizer.from_pretrained(bundle)(text)["input_ids"]
    expected = framework_tokens("smollm2", (19, 27, 28, 29), prompt, 16)
    assert optimum_tokens(folder / "out" / "pruned", prompt, 16) == expected
    assert optimum_tokens(bundle, prompt, 16) == expected
    assert same_tokens(genai_tokens(bundle, prompt, 16), expected, (2,))
    reader = og.Tokenizer(og.Model(str(bundle)))
    reader.update_options(add_special_tokens="true")
    assert [int(token) for token in reader.encode(text)] == prompt
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["licence"], manifest["licence_source"]) == ("apache-2.0", "general.license of the GGUF file")
    assert [(client["reason"], client["note"]) for client in manifest["clients"]] == [("", ""), ("", "")]


def test_plotted_scores_and_report_are_self_contained(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert (folder / "out" / "scores.svg").read_text().startswith("<svg")


def test_triton_serves_the_bundle_token_for_token(folder: Path) -> None:
    """The model repository of pruned SmolLM2 on a real server: HTTP and gRPC, streams, clients side by side."""
    from concurrent.futures import ThreadPoolExecutor

    from tokenizers import Tokenizer
    from triton_cases import ask, ask_stream, direct, generating_repository, grpc_stream

    from benchmarks.triton.server import serving

    bundle, new = folder / "bundle", 16
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    texts = ["The harbour master kept two clocks", "The capital of France is", "Zwei Käse, 日本 und 🎉🎉"]
    tokens = [direct(bundle, tokenizer.encode(text).ids, new) for text in texts]
    # The server in the wheel has no backend for the stepped model.
    name, models = generating_repository(folder / "models", folder / "served")
    with serving(models, folder / "triton") as server:

        def over_http(text: str) -> list[int]:
            return ask(server.http, "generate", {"text_input": text, "max_tokens": new}, model=name)[1]["output_ids"]

        def over_grpc(text: str) -> list[int]:
            with grpc_stream(server.grpc, model=name, text_input=text, max_tokens=new, stream=True) as stream:
                return stream.rest()[0]

        with ThreadPoolExecutor(6) as pool:
            found = [pool.submit(way, text) for text in texts for way in (over_http, over_grpc)]
            assert [future.result() for future in found] == [expected for expected in tokens for _ in range(2)]
        for text, expected in zip(texts, tokens, strict=True):
            events = ask_stream(server.http, {"text_input": text, "max_tokens": new}, model=name)
            assert "".join(event["text_output"] for event in events) == tokenizer.decode(expected)
