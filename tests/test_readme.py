"""Every command of the README, run in its order in one empty folder, on the real SmolLM2; and what the run promises."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the README's gatenorm commands have been run, each with its exit code checked."""
    folder = tmp_path_factory.mktemp("readme")
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] != "gatenorm":
            continue
        done = subprocess.run(
            [sys.executable, "-m", "gatenorm_export.cli.main", *words[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if "--json" in words:
            (folder / "last.json").write_text(done.stdout)
    return folder


def test_the_set_up_commands_exist() -> None:
    """They make this very environment, so they are not run inside it: make's targets and the extras must exist."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    others = [command for command in COMMANDS if not command.startswith("gatenorm")]
    assert others
    for command in others:
        if command.startswith("make "):
            assert command.split()[1] in targets
        else:
            assert command.startswith("pip install torch==2.13.0 && pip install -e")
            assert re.findall(r"\.\[(\w+)\]", command)[0] in extras


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
    result = json.loads((folder / "last.json").read_text())
    assert [threshold["passed"] for threshold in result["thresholds"]] == [True]


@pytest.mark.parametrize(("number", "shown"), [(0, str(tuple(range(30)))), (1, "(1, 3, 49152)")])
def test_the_python_examples_run(folder: Path, number: int, shown: str) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_the_pruned_folder_loads_in_optimum_and_generates(folder: Path) -> None:
    """Greedy tokens of ORTModelForCausalLM on the pruned folder equal the framework's with those branches zeroed."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    from gatenorm_export.framework import load_framework_model, zeroed_attention
    from gatenorm_export.sources import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(folder / "out" / "pruned")
    client = ORTModelForCausalLM.from_pretrained(folder / "out" / "pruned")
    inputs = tokenizer("The harbour master kept two clocks", return_tensors="pt")
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    spec = resolve_model("smollm2")
    model, _ = load_framework_model(spec)
    with torch.inference_mode(), zeroed_attention(model, spec, (19, 27, 28, 29)):
        expected = model.generate(**inputs, **options)
    assert client.generate(**inputs, **options).tolist() == expected.tolist()


def test_plotted_scores_and_report_are_self_contained(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert (folder / "out" / "scores.svg").read_text().startswith("<svg")
