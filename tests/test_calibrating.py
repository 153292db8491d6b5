"""Fits against numpy, the pieces of a graph against the whole, the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from calibration_cases import tokens
from model_zoo import NAMES

from gatenorm_export.calibrating import CorpusRequest, StreamModel, fit_repairs
from gatenorm_export.calibrating.corpus import MEASURED_WINDOWS, load_corpus, split_windows
from gatenorm_export.calibrating.least_squares import NormalEquations, factors_of, fit_linear
from gatenorm_export.calibrating.metering import Meter
from gatenorm_export.errors import InputError
from gatenorm_export.repairs import parse_repair


def rows(
    n: int, features: int = 6, targets: int = 5, noise: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(size=(features, targets))
    x = rng.normal(size=(n, features)) + 3.0
    return x, x @ truth + 2.0 + noise * rng.normal(size=(n, targets))


def equations(x: np.ndarray, y: np.ndarray) -> NormalEquations:
    sums = NormalEquations(x.shape[-1], y.shape[-1])
    for start in range(0, len(x), 7):
        sums.add(x[start : start + 7], y[start : start + 7])
    return sums


def test_the_fit_is_least_squares() -> None:
    x, y = rows(400)
    unseen = rows(100, seed=1)
    fit = fit_linear(equations(x, y), equations(*unseen))
    every_x, every_y = np.concatenate([x, unseen[0]]), np.concatenate([y, unseen[1]])
    expected, *_ = np.linalg.lstsq(np.c_[every_x, np.ones(len(every_x))], every_y, rcond=None)
    np.testing.assert_allclose(fit.weight, expected[:-1], atol=2e-3)
    np.testing.assert_allclose(fit.bias, expected[-1], atol=2e-2)
    error = ((unseen[0] @ fit.weight + fit.bias - unseen[1]) ** 2).sum()
    assert equations(*unseen).squared_error(fit.weight, fit.bias) == pytest.approx(error, rel=1e-6)


def test_the_ridge_grows_where_rows_are_few_and_noisy() -> None:
    clean = fit_linear(equations(*rows(400, noise=0.01)), equations(*rows(100, noise=0.01, seed=1)))
    rng = np.random.default_rng(5)
    noise = [(rng.normal(size=(n, 40)), rng.normal(size=(n, 5))) for n in (60, 60)]
    assert fit_linear(equations(*noise[0]), equations(*noise[1])).ridge > clean.ridge


def test_reduced_rank_is_the_best_of_its_rank() -> None:
    x, y = rows(300, noise=1.0)
    sums = equations(x, y)
    fit = fit_linear(sums, sums, rank=2)
    assert np.linalg.matrix_rank(fit.weight, tol=1e-8) == 2
    left, right = factors_of(fit.weight, 2)
    assert (left.shape, right.shape) == ((6, 2), (2, 5))
    np.testing.assert_allclose(left @ right, fit.weight, atol=1e-9)
    # Cutting the full solution's own singular values is what a naive low rank would be.
    full = fit_linear(sums, sums).weight
    u, s, v = np.linalg.svd(full)
    naive = (u[:, :2] * s[:2]) @ v[:2]
    bias = y.mean(axis=0) - x.mean(axis=0) @ naive
    assert sums.squared_error(fit.weight, fit.bias) < sums.squared_error(naive, bias)


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_together_are_the_graph(name: str, exported) -> None:
    _, graph, _ = exported(name)
    model, windows = StreamModel(graph), tokens(3)
    stream = model.embed(windows)
    for layer in model.layers:
        branch, _ = model.attend(layer, stream, windows)
        stream = model.rest(layer, stream, branch, windows).following
    session = onnxruntime.InferenceSession(str(graph))
    feed = model.feeds(windows)
    expected = session.run(["logits"], {entry.name: feed[entry.name] for entry in session.get_inputs()})[0]
    np.testing.assert_allclose(model.logits(stream, windows), expected, atol=1e-4 * np.ptp(expected))


def test_windows_are_set_aside_and_short_texts_refused(exported, tmp_path: Path) -> None:
    spec, graph, _ = exported("llama-gqa")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{4 + index % 90}" for index in range(256 * 9)))
    alone = load_corpus(CorpusRequest(text, shipped=False), graph.parent, spec)
    assert (len(alone.fitted), len(alone.measured)) == (7, 2)
    both = load_corpus(CorpusRequest(text), graph.parent, spec)
    assert len(both.fitted) > len(alone.fitted)
    assert both.sha256 != alone.sha256
    text.write_text("w5 " * 300)
    with pytest.raises(InputError, match=r"text\.txt: 300 tokens are too few"):
        load_corpus(CorpusRequest(text, shipped=False), graph.parent, spec)


def test_another_repair_of_the_same_layers_is_measured_anew(exported) -> None:
    _, graph, _ = exported("llama-gqa")
    model, windows = StreamModel(graph), tokens(6)
    repairs = [fit_repairs(model, tokens(24), (1,), parse_repair(kind)) for kind in ("bias", "linear")]
    meter, fresh = Meter(model, windows), Meter(model, windows)
    for fitted in repairs:
        meter.adopt(frozenset({1}), fitted)
    fresh.adopt(frozenset({1}), repairs[1])
    assert meter.cost(3).kl_nats == pytest.approx(fresh.cost(3).kl_nats, rel=1e-6)


def test_half_of_the_measured_windows_repeat_themselves() -> None:
    windows = tokens(40, length=32)
    split = split_windows(windows, "random tokens")
    assert len(split.measured) == MEASURED_WINDOWS
    for number, window in enumerate(split.measured):
        assert bool((window[:16] == window[16:]).all()) == (number % 2 == 1)
    # Nothing measured was fitted on.
    assert not {tuple(window[:16]) for window in split.measured} & {tuple(window[:16]) for window in split.fitted}


def test_each_repair_brings_the_stream_nearer_than_none(exported) -> None:
    """On text that it was not fitted on, in the order of what each can express."""
    _, graph, _ = exported("llama-gqa")
    model = StreamModel(graph)
    fitted, unseen = tokens(48), tokens(6, seed=9)
    drop = (2,)
    base = StreamModel(graph)
    meter = Meter(base, unseen)
    costs = {}
    for kind in ("none", "bias", "linear"):
        meter.adopt(frozenset(), {})
        meter.adopt(frozenset(drop), fit_repairs(model, fitted, drop, parse_repair(kind)))
        costs[kind] = meter.cost(None).kl_nats
    assert costs["linear"] < costs["bias"] < costs["none"]
