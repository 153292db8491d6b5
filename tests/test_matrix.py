"""A part of the faithfulness matrix small enough for every run; ``python -m benchmarks.matrix`` judges all of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import graph_passes
from benchmarks.matrix import cells, models, tables
from benchmarks.matrix.answers import Answer, worst_error
from benchmarks.matrix.cache_names import cache_key
from benchmarks.matrix.judge import ALL, FEW_SUBSETS, SUBSETS, TOLERANCES, Verdict, judge_cell
from benchmarks.matrix.producing import OTHER_PYTHON, ExportFailed, Request, prepare, produce
from benchmarks.matrix.running import Runner
from benchmarks.matrix.silencing import read_exits, silence_initializers

# Every block type and every attention that optimum exports with a cache; MoE and MLA decoders are the slow ones.
DECODERS = (
    "llama-gqa",
    "qwen2",
    "qwen3-moe",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptj",
    "gpt-neox",
    "gpt-bigcode",
    "opt",
    "bloom",
    "mpt",
    "olmo2",
    "granite",
    "smollm3",
    "gpt-oss",
    "deepseek-v3",
)
ENCODERS = ("bert", "vit", "siglip-vision")
DERIVATIVES = (
    "ort-optimizer",
    "ort-extended",
    "ort-basic",
    "fp16",
    "bf16",
    "qdq",
    "dynamic-int8",
    "int4",
    "stripped",
)
OTHER_ENVIRONMENT = (
    ("dynamo-18", "llama-gqa"),
    ("dynamo-23", "gpt2"),
    ("attention-op", "llama-gqa"),
    ("transformers5", "bert"),
    ("transformers5-ort", "llama-gqa"),
    ("genai", "llama-gqa"),
    ("genai-int4", "phi"),
    ("onnxslim", "gpt2"),
)
# A cross-attending decoder without mask and without own caches has nothing left that knows how far it is.
KNOWN_REFUSALS = {"decoder_with_past_model": "partly refused", "decoder_model_merged": "partly refused"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def filled(cache: Path) -> Path:
    """The cache with the graphs of the other environment, all made by one process: it takes long to start."""
    prepare([Request(cache, cells.exporter(exporter), models.family(family)) for exporter, family in OTHER_ENVIRONMENT])
    return cache


def judge(cache: Path, exporter: str, family: str, subsets: tuple[tuple[int, ...], ...] = SUBSETS) -> list[Verdict]:
    return judge_cell(cache, cells.exporter(exporter), models.family(family), subsets=subsets)


def assert_faithful(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        expected = KNOWN_REFUSALS.get(verdict.graph, "faithful")
        assert verdict.outcome == expected, f"{verdict.exporter} x {verdict.family} {verdict.graph}: {verdict.reason}"
        refused = {trial.layers for trial in verdict.trials if trial.refusal}
        assert refused == (set() if expected == "faithful" else {ALL})


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_of_optimum(cache, family):
    subsets = SUBSETS if family == "llama-gqa" else FEW_SUBSETS
    assert_faithful(judge(cache, "optimum", family, subsets))


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_of_optimum(cache, family):
    assert_faithful(judge(cache, "optimum-encoder", family))


def test_without_cache(cache):
    assert_faithful(judge(cache, "optimum-no-past", "llama-gqa", FEW_SUBSETS))


def test_whisper(cache):
    verdicts = judge(cache, "optimum-speech", "whisper", FEW_SUBSETS)
    assert len(verdicts) == 4
    assert_faithful(verdicts)


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "bert"])
@pytest.mark.parametrize("exporter", DERIVATIVES)
def test_derivatives(cache, exporter, family):
    suffix = "-encoder" if family == "bert" else ""
    assert_faithful(judge(cache, exporter + suffix, family, FEW_SUBSETS))


def test_fused_multi_head_attention(cache):
    assert_faithful(judge(cache, "ort-optimizer-mha-encoder", "bert", FEW_SUBSETS))


@pytest.mark.wide
@pytest.mark.skipif(not os.environ.get(OTHER_PYTHON), reason=f"{OTHER_PYTHON} names no Python with transformers 5")
@pytest.mark.parametrize(("exporter", "family"), OTHER_ENVIRONMENT)
def test_other_environment(filled, exporter, family):
    assert_faithful(judge(filled, exporter, family, FEW_SUBSETS))


@pytest.mark.parametrize("exporter", ["optimum", "fp16", "bf16", "qdq", "dynamic-int8", "int4"])
def test_a_wrong_surgery_is_wrong(cache, exporter, monkeypatch):
    right = graph_passes.remove_attention

    def neighbour(model, layers, **options):
        return right(model, [(layer + 1) % 4 for layer in layers], **options)

    for wrong in (neighbour, lambda model, layers, **options: None):
        monkeypatch.setattr(graph_passes, "remove_attention", wrong)
        (verdict,) = judge(cache, f"{exporter}-encoder", "bert", FEW_SUBSETS)
        assert verdict.outcome == "WRONG"
        assert verdict.worst > 10 * TOLERANCES[cells.exporter(exporter).precision]


def test_a_cache_that_stays_is_wrong(cache, monkeypatch):
    monkeypatch.setattr(graph_passes, "remove_attention", lambda model, layers, **options: None)
    (verdict,) = judge(cache, "optimum", "gpt2", FEW_SUBSETS)
    assert verdict.outcome == "crashed"
    assert "caches of layers" in verdict.reason


def test_both_references_agree(cache):
    row, made_by = models.family("gpt2"), cells.exporter("optimum")
    answers = []
    for by_value in (True, False):
        request = Request(cache, made_by, row, (0, 3), by_value)
        runner = Runner.load(produce(request)[""])
        assert request.folder.exists()
        answers.append(runner.run(runner.script()))
    assert worst_error(*answers) < 1e-6


def test_a_packed_exit_is_not_zeroed_by_value(cache):
    request = Request(cache, cells.exporter("int4-encoder"), models.family("bert"), (1,))
    base, exits = produce(request.base)[""], read_exits(request.root.base.folder, "", (1,))
    assert len(exits) == 2
    assert not silence_initializers(base, exits, cache / "silenced.onnx")
    assert not (cache / "silenced.onnx").exists()
    runner = Runner.load(produce(request)[""])
    other = Runner.load(base)
    assert worst_error(runner.run(runner.script()), other.run(other.script())) > 0.1


def test_a_failed_export_is_an_outcome(cache):
    (verdict,) = judge(cache, "optimum", "mixtral")
    assert verdict.outcome == "not exported"
    assert "mixtral" in verdict.reason
    with pytest.raises(ExportFailed):
        produce(Request(cache, cells.exporter("optimum"), models.family("mixtral")))


def test_the_other_environment_is_asked_for(cache, monkeypatch):
    monkeypatch.delenv(OTHER_PYTHON, raising=False)
    (verdict,) = judge(cache, "genai", "llama-mha")
    assert verdict.outcome == "no environment"
    assert OTHER_PYTHON in verdict.reason


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("past_key_values.3.value", (3, "value")),
        ("present.0.decoder.key", (0, "decoder.key")),
        ("past_key_values_7", (3, "value")),
        ("present_4", (2, "key")),
        ("input.past_key_values.layers.12.keys", (12, "key")),
        ("past_key_2", (2, "key")),
    ],
)
def test_names_of_caches(name, key):
    assert cache_key(name) == key


def test_padding_does_not_count_and_nan_does():
    valid = np.array([[False, True]])
    expected = [Answer({"logits": np.array([[[0.0, 1.0], [2.0, 4.0]]])}, valid)]
    other = [Answer({"logits": np.array([[[np.nan, 9.0], [2.0, 3.0]]])}, valid)]
    assert worst_error(other, expected) == 0.5
    lost = [Answer({"logits": np.array([[[0.0, 1.0], [2.0, np.nan]]])}, valid)]
    assert worst_error(lost, expected) == float("inf")


def test_tables():
    verdicts = [
        Verdict("optimum", "llama-gqa", "", "faithful"),
        Verdict("fp16-encoder", "bert", "", "refused", "no residual"),
        Verdict("fp16", "gpt2", "", "WRONG", "off by 1"),
    ]
    assert tables.markdown(verdicts).splitlines() == [
        "| exporter | faithful | refused | WRONG |",
        "| --- | ---: | ---: | ---: |",
        "| optimum | 1 |  |  |",
        "| fp16 |  | 1 | 1 |",
        "| **all** | 1 | 1 | 1 |",
        "",
        "- refused: fp16-encoder x bert: no residual",
        "- WRONG: fp16 x gpt2: off by 1",
    ]


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(KeyError, match="llama-gqa"):
        models.family("llama")
    with pytest.raises(KeyError, match="optimum"):
        cells.exporter("optimist")
