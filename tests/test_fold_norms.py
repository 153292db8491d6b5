"""Norm weights folded into query and key, and how far that moves a ranking."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from model_zoo import row
from safetensors.numpy import load_file

from benchmarks.matrix.models import family
from gatenorm_export.architectures import LayerTensors, Tower
from gatenorm_export.architectures.layouts import SEPARATE
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records import LayerScore
from gatenorm_export.reporting import scores_svg
from gatenorm_export.scoring import ScoreRequest, score_model
from gatenorm_export.scoring.gate_norm import gate_norm
from gatenorm_export.scoring.norms import default_cut, folded, gain_of, ranking_shift, require_norms
from gatenorm_export.scoring.ranks import average_ranks, lowest, removal_order, spearman, two_digits
from gatenorm_export.scoring.trend import depth_trend, longest_fall, nearest_fall
from gatenorm_export.sources import resolve_model


def test_a_folded_layer_computes_what_norm_and_projection_compute() -> None:
    """Wq diag(g) on the bare normalised stream is Wq on the norm's result, and so is its score."""
    import torch

    model = row("llama-gqa").make()
    block = model.model.layers[1]
    attention, norm = block.self_attn, block.input_layernorm
    query, key = (getattr(attention, name).weight.detach().numpy() for name in ("q_proj", "k_proj"))
    query_folded, key_folded = folded(query, key, gain_of(norm.weight.detach().numpy(), 0.0))
    assert query_folded.dtype == np.float64
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    bare = (x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()).numpy()
    with torch.no_grad():
        assert bare @ query_folded.T == pytest.approx(attention.q_proj(norm(x)).numpy(), abs=1e-5)
        assert bare @ key_folded.T == pytest.approx(attention.k_proj(norm(x)).numpy(), abs=1e-5)
    g = norm.weight.detach().double().numpy()
    heads = key.astype(np.float64).reshape(2, 16, 64).repeat(2, axis=0).reshape(64, 64)
    expected = np.linalg.norm(np.diag(g) @ query.astype(np.float64).T @ heads @ np.diag(g))
    assert gate_norm(query_folded, key_folded, head_dim=16) == pytest.approx(expected, rel=1e-9)
    assert gate_norm(query, key, head_dim=16) != pytest.approx(expected, rel=1e-2)


def test_gemma_stores_its_norm_less_one() -> None:
    weight = np.array([0.0, -0.5, 1.0], np.float32)
    assert gain_of(weight, 1.0).tolist() == [1.0, 0.5, 2.0]
    query, key = np.ones((2, 3), np.float32), np.ones((1, 3), np.float32)
    assert folded(query, key, gain_of(weight, 1.0))[0].tolist() == [[1.0, 0.5, 2.0]] * 2


def test_a_gain_of_ones_changes_nothing_and_half_precision_stays_small() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(8, 6)).astype(np.float16), rng.normal(size=(4, 6)).astype(np.float16)
    same = folded(query, key, np.ones(6))
    assert (same[0] == query).all()
    assert (same[1] == key).all()
    assert same[0].dtype == np.float32


@pytest.mark.parametrize("wrong", [np.ones(5), np.ones((6, 1)), np.array([1, 1, 1, 1, 1, np.nan])])
def test_a_gain_that_does_not_fit_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="norm weight"):
        folded(np.ones((8, 6)), np.ones((4, 6)), wrong)


def tower(*norms: str | None, **how: Any) -> Tower:
    layers = tuple(LayerTensors(layer, ("q", "k"), norm) for layer, norm in enumerate(norms))
    return Tower("", len(norms), 8, 2, 2, 4, SEPARATE, layers, **how)


def test_blocks_without_a_norm_in_front_are_refused_with_the_reason() -> None:
    require_norms(tower("a", "b", norm="{layer}.norm"), "llama")
    require_norms(tower(None, "b", norm="{layer}.norm", normed_from=1), "modernbert")
    cross = dataclasses.replace(tower(None, None), name="cross")
    for found, says in (
        (tower(None, None), "bert: --fold-norms has nothing to fold: no layer has .* as in BERT"),
        (tower("a", None), "bert: --fold-norms has nothing to fold: layer 1 has no norm weight"),
        (tower(None, None, guessed="by names"), "which norm stands before attention is not known"),
        (cross, "bert, tower cross: .* two different norms.*--tower"),
    ):
        with pytest.raises(RefusedError, match=says):
            require_norms(found, "bert")
    with pytest.raises(RefusedError, match="score the checkpoint that it was exported from"):
        require_norms(tower(None, None), "graph", graph=True)
    with pytest.raises(InputError, match=r"llama: tensor 1.norm is missing from the checkpoint; only --fold-norms"):
        require_norms(tower("a", None, norm="{layer}.norm"), "llama")


def test_modernberts_first_layer_reads_embeddings_that_are_normed_already(tmp_path: Path) -> None:
    family("modernbert").make().save_pretrained(tmp_path)
    found = score_model(resolve_model(str(tmp_path)), ScoreRequest(fold_norms=True))
    assert found.folded is not None
    plain, with_norms = ({one.layer: one.score for one in scores} for scores in (found.layers, found.folded.layers))
    tensors = load_file(tmp_path / "model.safetensors")
    assert plain[0] == with_norms[0]
    name = next(name for name in tensors if name.endswith("layers.1.attn_norm.weight"))
    fused = tensors[name.replace("attn_norm", "attn.Wqkv")].astype(np.float64)
    query, key, _ = np.split(fused * tensors[name].astype(np.float64), 3)
    assert with_norms[1] == pytest.approx(np.linalg.norm(query.T @ key))


def test_a_shift_names_who_moved_and_what_would_go_instead() -> None:
    plain = {0: 4.0, 1: 3.0, 2: 2.0, 3: 1.0}
    shift = ranking_shift(plain, {0: 1.0, 1: 3.0, 2: 2.0, 3: 4.0}, n=1)
    assert shift.moved == (0, 3)
    assert (shift.max_move, shift.max_move_layer) == (3, 0)
    assert (shift.plain, shift.folded, shift.overlap) == ((3,), (0,), 0)
    assert shift.spearman_rho == pytest.approx(-0.8)
    assert shift.sentence == (
        "Folding the norm weights in moves 2 of 4 layers in the ranking, layer 0 farthest, by 3 places "
        "(Spearman -0.80); the lowest becomes 0 in place of 3."
    )
    wider = ranking_shift(plain, {0: 1.0, 1: 3.0, 2: 2.0, 3: 4.0}, n=2)
    assert wider.sentence.endswith("1 of the 2 lowest stays (0 would go in place of 3).")
    swapped = ranking_shift(plain, {0: 3.0, 1: 4.0, 2: 2.0, 3: 1.0}, n=2, tower="text")
    assert swapped.max_move == 1
    assert "by 1 place (" in swapped.sentence
    assert swapped.sentence.endswith("the 2 lowest stay the same layers.")
    assert "layers of text in" in swapped.sentence


def test_scores_that_only_scale_move_nothing() -> None:
    plain = {layer: 10.0 - layer for layer in range(8)}
    shift = ranking_shift(plain, {layer: 3 * score for layer, score in plain.items()})
    assert (shift.n, shift.overlap, shift.moved, shift.max_move_layer) == (2, 2, (), None)
    assert shift.spearman_rho == pytest.approx(1.0)
    assert "leaves the ranking as it is" in shift.sentence


def test_other_layers_or_a_cut_beyond_them_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same layers"):
        ranking_shift({0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match="cut of 3"):
        ranking_shift({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, n=3)
    assert [default_cut(n) for n in (1, 3, 4, 30)] == [1, 1, 1, 7]


def test_ranks_share_ties_and_removal_takes_the_deeper_of_equals() -> None:
    assert average_ranks([3.0, 1.0, 1.0, 2.0]).tolist() == [3.0, 0.5, 0.5, 2.0]
    assert removal_order({0: 1.0, 1: 1.0, 2: 0.5}) == (2, 1, 0)
    assert lowest({0: 1.0, 1: 1.0, 2: 0.5}, 2) == (1, 2)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None
    assert [two_digits(rho) for rho in (-0.004, -0.006, 1.0)] == ["0.00", "-0.01", "1.00"]


def test_the_trend_counts_steps_and_names_the_rises() -> None:
    trend = depth_trend([9.0, 7.0, 8.0, 6.0, 5.0, 4.0, 4.0, 3.0])
    assert trend.falls_with_depth
    assert (trend.n_steps, trend.falling_steps, trend.rises, trend.monotone) == (7, 5, (2,), False)
    assert (trend.longest_fall_from, trend.longest_fall) == (2, 4)
    assert "5 of 7 steps fall" in trend.sentence
    assert depth_trend([3.0, 2.0, 2.0, 1.0]).monotone is True
    assert "never rise" in depth_trend([3.0, 2.0, 2.0, 1.0]).sentence
    assert "at every step" in depth_trend([3.0, 2.0, 1.0]).sentence
    rising = depth_trend([1.0, 2.0, 3.0])
    assert (rising.falls_with_depth, rising.rises, rising.longest_fall_from) == (False, (1, 2), None)
    assert depth_trend([5.0]).n_steps == 0
    assert depth_trend([5.0, 5.0]).sentence == "Too few different scores for a trend."


def test_of_equally_long_falls_the_deepest_is_named() -> None:
    assert longest_fall([3.0, 2.0, 3.0, 2.0]) == (2, 2)
    assert longest_fall([]) == (None, 0)
    assert longest_fall([1.0, 1.0]) == (None, 0)


def test_the_nearest_fall_is_the_best_falling_curve() -> None:
    assert nearest_fall([5.0, 3.0, 2.0]) == (5.0, 3.0, 2.0)
    assert nearest_fall([1.0, 2.0, 3.0]) == (2.0, 2.0, 2.0)
    scores = np.random.default_rng(3).normal(size=12) - np.arange(12) * 0.1
    best = np.array(nearest_fall(scores.tolist()))
    assert (np.diff(best) <= 1e-12).all()
    error = ((best - scores) ** 2).sum()
    rng = np.random.default_rng(4)
    for _ in range(300):
        other = np.sort(best + rng.normal(scale=0.1, size=12))[::-1]
        assert ((other - scores) ** 2).sum() >= error


def test_the_plot_shows_the_falling_curve_and_the_steps(tmp_path: Path) -> None:
    """With equal scale in every bar, the curve lies on the tops of bars that fall and pools those that rise."""
    scores = score_model(resolve_model(str(row("llama-gqa").save(tmp_path))))
    values = [4.0, 1.0, 3.0, 1.0]
    layers = tuple(LayerScore(layer=layer, score=value) for layer, value in enumerate(values))
    scores = scores.model_copy(update={"layers": layers, "trends": {"": depth_trend(values)}})
    root = ElementTree.fromstring(scores_svg(scores, (3,)))
    space = "{http://www.w3.org/2000/svg}"
    (curve,) = [line for line in root.iter(f"{space}polyline") if line.get("class") == "gn-fall"]
    heights = [float(point.split(",")[1]) for point in curve.get("points").split()]
    bars = [bar for bar in root.iter(f"{space}rect") if bar.get("data-layer")]
    tops = [float(bar.get("y")) for bar in bars]
    assert heights[0] == heights[1] == pytest.approx(tops[0], abs=0.11)
    assert heights[2:6] == pytest.approx([(tops[1] + tops[2]) / 2] * 4, abs=0.11)
    assert heights[6:] == pytest.approx([tops[3]] * 2, abs=0.11)
    words = " ".join(text.text or "" for text in root.iter(f"{space}text"))
    assert "2 of 3 steps fall" in words
    assert "longest unbroken fall: layers 2 to 3" in words
    assert bars[3].get("data-mark") == "dropped"
