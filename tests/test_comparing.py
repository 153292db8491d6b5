"""Quality, latency, limits and verdict: known answers, and figures that cannot lie."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from engine_cases import write_attention
from model_zoo import make_tokenizer
from report_factory import a_latency, a_quality

from gatenorm_export.benching.statistics import order_free_ratios
from gatenorm_export.comparing import Limits, check_limits, load_text, measure_latency, measure_quality
from gatenorm_export.comparing.feeds import make_script, step_feed
from gatenorm_export.comparing.latency import speedup_with_interval
from gatenorm_export.comparing.quality import QualitySums, top_k_overlap
from gatenorm_export.comparing.runners import FrameworkDecoder, OnnxDecoder
from gatenorm_export.comparing.text import Text, tokenize
from gatenorm_export.decode_signature import signature_of
from gatenorm_export.errors import InputError, UsageError
from gatenorm_export.framework import load_framework_model, load_tokenizer, zeroed_attention
from gatenorm_export.pruning import prune_graph
from gatenorm_export.sessions import open_session
from gatenorm_export.silence import silent_polygraphy

WORDS = Text("words", " ".join(f"w{4 + (7 * i + i * i // 3) % 120}" for i in range(400)))


def test_sums_have_known_answers() -> None:
    base = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    pruned = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]])) + 7.0
    sums = QualitySums()
    sums.add(base, pruned, np.array([0, 1]))
    assert sums.base_nats == pytest.approx(-math.log(0.5) - math.log(0.8))
    assert sums.pruned_nats == pytest.approx(-math.log(0.25) - math.log(0.8))
    assert sums.kl_nats == pytest.approx(0.25 * math.log(2))
    assert sums.overlap[1] == 1.0


def test_top_k_overlap_counts_what_both_have() -> None:
    base = np.array([[4.0, 3.0, 2.0, 1.0]])
    assert top_k_overlap(base, base, 2) == 1.0
    assert top_k_overlap(base, base[:, ::-1], 2) == 0.0
    assert top_k_overlap(base, np.array([[4.0, 1.0, 3.0, 2.0]]), 2) == 0.5


def test_a_graph_against_itself_costs_nothing(exported) -> None:
    spec, graph, _ = exported("llama-gqa")
    tokens = tokenize(WORDS, graph.parent, spec, limit=300)
    quality = measure_quality(graph, graph, tokens, WORDS)
    assert quality.ppl_ratio == 1.0
    assert quality.kl_nats == 0.0
    assert quality.greedy_agreement == quality.top1_agreement == quality.top10_agreement == 1.0
    assert quality.n_tokens == 300 - 2
    assert quality.base_ppl > 1


def test_quality_is_what_torch_says(exported, tmp_path: Path) -> None:
    import torch

    spec, graph, _ = exported("llama-gqa")
    prune_graph(graph, tmp_path / "pruned.onnx", layers=(1, 3))
    tokens = tokenize(WORDS, graph.parent, spec, limit=100)
    quality = measure_quality(graph, tmp_path / "pruned.onnx", tokens, WORDS)
    model, _ = load_framework_model(spec)
    ids = torch.from_numpy(tokens)[None]
    with torch.inference_mode():
        loss = float(model(ids, labels=ids).loss)
        with zeroed_attention(model, spec, (1, 3)):
            zeroed = float(model(ids, labels=ids).loss)
    assert quality.base_loss_nats == pytest.approx(loss, rel=1e-5)
    assert quality.pruned_loss_nats == pytest.approx(zeroed, rel=1e-5)
    assert quality.kl_nats > 0.01
    assert quality.top1_agreement < 1.0


def test_positions_that_ignore_the_padding_are_noticed(exported) -> None:
    """Left padding matters: the same graph fed positions that count the padding gives other logits."""
    spec, graph, _ = exported("llama-gqa")
    model, _ = load_framework_model(spec)
    reference = FrameworkDecoder(model)
    with silent_polygraphy(), reference, OnnxDecoder(graph, "graph") as decoder:
        script = make_script(lambda feed: reference.infer(feed)["logits"], 128)
        feed = dict(script.feeds[0])
        expected, got = reference.infer(feed)["logits"], decoder.infer(feed)["logits"]
        np.testing.assert_allclose(got, expected, atol=1e-4)
        hidden = dict(feed, attention_mask=np.ones_like(feed["attention_mask"]))
        assert np.abs(decoder.infer(hidden)["logits"] - expected)[:, -1].max() > 1e-2
    assert (feed["attention_mask"] == 0).any()


def test_positions_count_what_the_mask_shows() -> None:
    feed = step_feed(np.array([[5, 6]]), np.array([[0, 1, 1, 1]]))
    assert feed["position_ids"].tolist() == [[1, 2]]


def test_a_framework_decoder_decodes_as_it_prefills(exported) -> None:
    spec, _, _ = exported("qwen2-gqa")
    model, _ = load_framework_model(spec)
    ids = np.arange(4, 14, dtype=np.int64)[None]
    with FrameworkDecoder(model) as decoder:
        whole = decoder.infer(step_feed(ids, np.ones_like(ids)))["logits"]
        decoder.infer(step_feed(ids[:, :6], np.ones((1, 6), np.int64)))
        rest = decoder.infer(step_feed(ids[:, 6:], np.ones((1, 10), np.int64)))["logits"]
    np.testing.assert_allclose(rest, whole[:, 6:], atol=1e-4)


def test_latency_measures_both_phases(exported) -> None:
    _, graph, _ = exported("llama-gqa")
    latency = measure_latency(graph, graph, sequences=(8, 16))
    assert [(row.phase, row.sequence) for row in latency.rows] == [
        ("prefill", 8),
        ("prefill", 16),
        ("decode", 8),
        ("decode", 16),
    ]
    for row in latency.rows:
        assert 0 < row.base_p50_ms <= row.base_p90_ms
        assert row.speedup_low <= row.speedup <= row.speedup_high


def test_both_graphs_are_loaded_in_both_orders(exported, monkeypatch):
    import gc
    import weakref

    from gatenorm_export.comparing import latency as measuring

    _, graph, _ = exported("llama-gqa")
    opened, alive, open_session = [], [], measuring.open_session

    def recorded(path):
        session = open_session(path)
        opened.append((path.name, sum(entry() is not None for entry in alive)))
        alive.append(weakref.ref(session))
        return session

    monkeypatch.setattr(measuring, "open_session", recorded)
    copy = graph.with_name("copy.onnx")
    copy.write_bytes(graph.read_bytes())
    latency = measure_latency(graph, copy, sequences=(8,))
    # Each name with how many sessions were open then: those of the first loading are gone at the second.
    assert opened == [("model.onnx", 0), ("copy.onnx", 1), ("copy.onnx", 0), ("model.onnx", 1)]
    gc.collect()
    assert not any(entry() for entry in alive)
    # Of two loadings, in each as many pairs.
    assert [row.repeats for row in latency.rows] == [2 * measuring.REPEATS[phase] for phase in ("prefill", "decode")]


def test_who_goes_second_does_not_make_a_speedup() -> None:
    """The same graph against itself, where whatever is called second takes 1.7 times as long."""
    seconds = np.ones((2, 20))
    seconds[1, 0::2] = seconds[0, 1::2] = 1.7
    assert speedup_with_interval(order_free_ratios(seconds)) == pytest.approx((1.0, 1.0, 1.0))
    # A graph that really is half as long stays so.
    seconds[1] /= 2
    assert speedup_with_interval(order_free_ratios(seconds))[0] == pytest.approx(2.0)


def test_the_speedup_is_the_median_of_pairs_with_its_interval() -> None:
    ratio, low, high = speedup_with_interval(np.full(40, 1.5))
    assert ratio == pytest.approx(1.5)
    assert (low, high) == (pytest.approx(1.5), pytest.approx(1.5))
    noisy = np.random.default_rng(0).uniform(0.5, 2.0, size=(4, 40))
    ratio, low, high = speedup_with_interval(noisy[0])
    assert low < ratio < high
    _, low_of_all, high_of_all = speedup_with_interval(*noisy)
    assert high_of_all - low_of_all < high - low
    assert speedup_with_interval(np.full(5, 2.0), np.full(5, 0.5))[0] == pytest.approx(1.0)


def test_limits_hold_or_are_missed() -> None:
    quality, latency = a_quality(), a_latency()
    held = check_limits(Limits(max_ppl_ratio=quality.ppl_ratio, max_kl=99.0, min_speedup=0.1), quality, latency)
    assert [threshold.passed for threshold in held] == [True, True, True]
    missed = check_limits(Limits(max_ppl_ratio=1.0, max_kl=0.0, min_speedup=99.0), quality, latency)
    assert [threshold.passed for threshold in missed] == [False, False, False]
    assert check_limits(Limits(), quality, latency) == ()
    broken = quality.model_copy(update={"ppl_ratio": float("nan")})
    assert not check_limits(Limits(max_ppl_ratio=1e9), broken, latency)[0].passed
    with pytest.raises(UsageError, match="--min-speedup needs latency"):
        check_limits(Limits(min_speedup=1.0), quality, None)


def test_the_shipped_text_is_long_enough_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    assert len(load_text(None).content) > 6000
    for content, complaint in ((b"", "is empty"), (b"\xff\xfe\x00", "not UTF-8")):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(InputError, match=complaint):
            load_text(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be read"):
        load_text(tmp_path / "absent")


def test_a_text_of_a_few_words_is_refused(exported, tmp_path: Path) -> None:
    spec, graph, _ = exported("llama-gqa")
    with pytest.raises(InputError, match="3 tokens are too few"):
        tokenize(Text("short", "w5 w6 w7"), graph.parent, spec, limit=100)
    assert tokenize(WORDS, tmp_path, None, limit=100) is None


def test_a_size_of_heads_that_the_graph_leaves_open_is_told_by_its_attention(tmp_path: Path) -> None:
    """As onnxruntime-genai writes its caches; an empty cache of size 0 would be refused by the operator."""
    graph = write_attention(tmp_path / "g.onnx", ["batch", "step"], ["batch", "total"], ["batch", 2, "past", "size"])
    signature = signature_of(open_session(graph), graph)
    assert [entry.filled(3, 5).shape for entry in signature.past] == [(3, 2, 5, 16)] * 2


def test_a_tokenizer_that_transformers_5_saved_is_read(tmp_path: Path) -> None:
    """onnxruntime-genai's builder runs on it, and its class of all fast tokenizers has a name of its own there."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "TokenizersBackend"}))
    found = load_tokenizer(tmp_path, None)
    assert found("w5 w9 w77")["input_ids"] == tokenizer("w5 w9 w77")["input_ids"]
    assert found.eos_token == tokenizer.eos_token
