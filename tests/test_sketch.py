"""Sketched scores: the interval holds the exact score whatever the spectrum, and certain layers are the lowest ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatenorm_export.scoring import gate_norm
from gatenorm_export.scoring.certify import Interval, certainty, most_urgent, undecided
from gatenorm_export.scoring.gate_norm import _compute, exact_score
from gatenorm_export.scoring.sketch import BlockSigns, sketch

WIDTH = 192

SPECTRA = {
    "flat": np.ones(WIDTH),
    "rank one": np.eye(WIDTH)[0],
    "rank three": np.r_[3.0, 2.0, 1.0, np.zeros(WIDTH - 3)],
    "one spike": np.r_[8.0, np.ones(WIDTH - 1)],
    "power law": 1.0 / np.arange(1, WIDTH + 1),
    "slow power law": np.arange(1, WIDTH + 1) ** -0.3,
    "exponential": np.exp(-np.arange(WIDTH) / 8),
    "two levels": np.r_[np.full(16, 5.0), np.full(WIDTH - 16, 0.5)],
}


def orthogonal(rng: np.random.Generator, width: int = WIDTH) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(width, width)))[0]


def with_spectrum(values: np.ndarray, rng: np.random.Generator, *, aligned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights whose gate matrix has the singular values ``values``, in random directions or along the axes."""
    left, right = (np.eye(len(values)), np.eye(len(values))) if aligned else (orthogonal(rng), orthogonal(rng))
    inner = orthogonal(rng) * np.sqrt(values)
    return (inner @ left.T).astype(np.float32), (inner @ right.T).astype(np.float32)


@pytest.mark.parametrize("aligned", [False, True], ids=["turned", "along the axes"])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_holds_the_exact_score(name: str, rank: int, aligned: bool) -> None:
    query, key = with_spectrum(SPECTRA[name], np.random.default_rng(1), aligned=aligned)
    exact = gate_norm(query, key, head_dim=16)
    estimates = []
    for seed in range(150):
        found = sketch(query, key, head_dim=16, columns=96, rng=np.random.default_rng(seed), rank=rank)
        assert found.low <= exact <= found.high
        estimates.append(found.score**2)
    spread = np.std(estimates) / np.sqrt(len(estimates))
    # Unbiased: the mean lies within five standard errors of the truth, and what float32 rounds.
    assert np.mean(estimates) == pytest.approx(exact**2, abs=5 * spread + 1e-5 * exact**2)


@pytest.mark.parametrize("aligned", [False, True], ids=["turned", "along the axes"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_holds_where_directions_come_from_the_sketch_before(name: str, aligned: bool) -> None:
    query, key = with_spectrum(SPECTRA[name], np.random.default_rng(11), aligned=aligned)
    exact = gate_norm(query, key, head_dim=16)
    estimates = []
    for seed in range(100):
        first = sketch(query, key, head_dim=16, columns=96, rng=np.random.default_rng((seed, 0)), leads=8)
        rng = np.random.default_rng((seed, 1))
        second = sketch(query, key, head_dim=16, columns=96, rng=rng, rank=8, hint=first.leads, leads=16)
        rng = np.random.default_rng((seed, 2))
        third = sketch(query, key, head_dim=16, columns=112, rng=rng, rank=16, hint=second.leads)
        for found in (first, second, third):
            assert found.low <= exact <= found.high
        estimates.append(second.score**2)
    spread = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(exact**2, abs=5 * spread + 1e-5 * exact**2)


def test_directions_from_the_sketch_before_are_the_better_ones() -> None:
    query, key = with_spectrum(SPECTRA["slow power law"], np.random.default_rng(12), aligned=False)

    def width(hint: np.ndarray | None) -> float:
        found = sketch(query, key, head_dim=16, columns=96, rng=np.random.default_rng(0), rank=16, hint=hint)
        return found.high - found.low

    first = sketch(query, key, head_dim=16, columns=96, rng=np.random.default_rng(1), leads=16)
    assert first.leads is not None
    assert first.leads.shape == (WIDTH, 16)
    assert width(first.leads) < 0.9 * width(None)


@pytest.mark.parametrize("hint", [np.zeros((WIDTH, 4)), np.ones((WIDTH, 4)), np.full((WIDTH, 4), np.nan)])
def test_a_hint_that_leads_nowhere_does_no_harm(hint: np.ndarray) -> None:
    query, key = with_spectrum(SPECTRA["flat"], np.random.default_rng(13), aligned=False)
    found = sketch(query, key, head_dim=16, columns=96, rng=np.random.default_rng(0), rank=4, hint=hint)
    assert found.low <= gate_norm(query, key, head_dim=16) <= found.high < 2 * found.low


@pytest.mark.parametrize("name", ["flat", "slow power law", "two levels"])
def test_the_interval_is_worth_something(name: str) -> None:
    """An interval from nothing to infinity would hold every score."""
    query, key = with_spectrum(SPECTRA[name], np.random.default_rng(2), aligned=False)
    plain = sketch(query, key, head_dim=16, columns=96, rng=np.random.default_rng(0))
    refined = sketch(query, key, head_dim=16, columns=96, rng=np.random.default_rng(0), rank=24)
    assert (refined.high - refined.low) / refined.score < 0.3
    if name != "two levels":
        assert (plain.high - plain.low) / plain.score < 0.6


def test_taking_directions_exactly_narrows_a_steep_spectrum() -> None:
    query, key = with_spectrum(SPECTRA["power law"], np.random.default_rng(3), aligned=False)
    plain = sketch(query, key, head_dim=16, columns=128, rng=np.random.default_rng(0))
    refined = sketch(query, key, head_dim=16, columns=128, rng=np.random.default_rng(0), rank=16)
    assert refined.high - refined.low < (plain.high - plain.low) / 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), fall=st.floats(0, 3), spikes=st.integers(0, 5), rank=st.sampled_from([0, 4, 16]))
def test_random_spectra_lie_in_their_intervals(seed: int, fall: float, spikes: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.arange(1, WIDTH + 1) ** -fall * rng.lognormal(0, 1, WIDTH)
    values[:spikes] *= rng.uniform(1, 100, spikes)
    query, key = with_spectrum(values, rng, aligned=bool(seed % 2))
    found = sketch(query, key, head_dim=16, columns=64, rng=rng, rank=rank)
    assert found.low <= gate_norm(query, key, head_dim=16) <= found.high


@pytest.mark.parametrize("rank", [0, 8])
def test_grouped_queries_are_summed_before_they_are_projected(rank: int) -> None:
    rng = np.random.default_rng(4)
    query, key = rng.normal(size=(256, 160)).astype(np.float32), rng.normal(size=(64, 160)).astype(np.float32)
    exact = gate_norm(query, key, head_dim=16)
    estimates = [
        sketch(query, key, head_dim=16, columns=64, rng=np.random.default_rng(seed), rank=rank).score
        for seed in range(60)
    ]
    assert np.mean(estimates) == pytest.approx(exact, rel=0.02)


def test_a_seed_is_a_result() -> None:
    query, key = with_spectrum(SPECTRA["flat"], np.random.default_rng(5), aligned=False)
    runs = [sketch(query, key, head_dim=16, columns=64, rng=np.random.default_rng(seed)) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("width", [48, 100, 161])
def test_projections_keep_norms_on_average(width: int) -> None:
    """E[F F^T] = I, also where the blocks do not divide the width."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, width)).astype(np.float32)
    total = np.zeros((3, 3))
    for _ in range(400):
        signs = BlockSigns(width, 48, rng)
        out = np.empty((3, signs.columns), np.float32)
        signs.project(rows, out)
        total += out.astype(np.float64) @ out.T
    assert total / 400 == pytest.approx(rows.astype(np.float64) @ rows.T, abs=0.12 * width)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rank", [0, 8])
def test_a_bad_weight_shows_in_the_estimate(bad: float, rank: int) -> None:
    query, key = with_spectrum(SPECTRA["flat"], np.random.default_rng(6), aligned=False)
    key[17, 33] = bad
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(
            sketch(query, key, head_dim=16, columns=64, rng=np.random.default_rng(0), rank=rank).score
        )


@pytest.mark.parametrize("shape", [(64, 64, 96), (64, 16, 96), (96, 96, 64), (96, 32, 96)])
def test_float32_keeps_within_its_bound(shape: tuple[int, int, int]) -> None:
    """The bound on rounding holds, and is not so loose that it says nothing."""
    rows, key_rows, width = shape
    rng = np.random.default_rng(7)
    query, key = (
        rng.normal(size=(rows, width)).astype(np.float32),
        rng.normal(size=(key_rows, width)).astype(np.float32),
    )
    exact = exact_score(query, key, head_dim=16)
    found = _compute(query, key, 16, np.float32)
    assert exact.arithmetic == "float64"
    assert abs(found.score / exact.score - 1) < found.rounding < 1e-2
    assert exact.rounding < 1e-10


def test_per_head_is_its_definition() -> None:
    rng = np.random.default_rng(8)
    query, key = rng.normal(size=(32, 20)), rng.normal(size=(16, 20))
    squared = sum(np.linalg.norm(query[h * 8 : h * 8 + 8].T @ key[h // 2 * 8 : h // 2 * 8 + 8]) ** 2 for h in range(4))
    assert gate_norm(query, key, head_dim=8, variant="per-head") == pytest.approx(np.sqrt(squared), rel=1e-12)
    order = np.concatenate([np.arange(8) + 8 * h for h in (3, 2, 1, 0)])
    turned = np.concatenate([np.arange(8) + 8 * h for h in (1, 0)])
    assert gate_norm(query[order], key[turned], head_dim=8, variant="per-head") == pytest.approx(np.sqrt(squared))


intervals = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 0.5)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(pairs=intervals, n=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
def test_a_certain_cut_is_the_exact_one(pairs: list[tuple[float, float]], n: int, seed: int) -> None:
    """Wherever in their intervals the scores are, the layers that are certain to go are the ones that go."""
    bounds = [Interval(layer, low, low * (1 + share)) for layer, (low, share) in enumerate(pairs)]
    left = set(undecided(bounds, n))
    rng = np.random.default_rng(seed)
    choices = []
    for _ in range(20):
        scores = {one.layer: rng.choice([one.low, one.high, rng.uniform(one.low, one.high)]) for one in bounds}
        choices.append(frozenset(sorted(scores, key=lambda layer: (scores[layer], -layer))[:n]))
    assert len({choice - left for choice in choices}) == 1
    if not left:
        assert certainty(bounds, n).certain


def test_what_overlaps_the_cut_is_undecided_and_nothing_else() -> None:
    bounds = [Interval(0, 9, 10), Interval(1, 5, 6), Interval(2, 5.5, 7), Interval(3, 1, 2), Interval(4, 1.5, 3)]
    assert undecided(bounds, 3) == (1, 2)
    assert undecided(bounds, 2) == undecided(bounds, 4) == ()
    assert undecided(bounds, 0) == undecided(bounds, 5) == ()
    assert not certainty(bounds, 3).certain
    assert most_urgent(bounds, 3) == (1, 2)
    final = [Interval(one.layer, one.low, one.high, final=one.layer in (1, 2)) for one in bounds]
    assert most_urgent(final, 3) == ()
    assert certainty(final, 3).tied == (1, 2)


def test_the_two_intervals_that_reach_furthest_across_the_cut_come_first() -> None:
    low, high = [Interval(0, 1, 6), Interval(1, 1, 8), Interval(2, 3, 5)], [Interval(3, 4, 20), Interval(4, 7, 9)]
    assert most_urgent([*low, *high], 3) == (1, 3)
    assert most_urgent([*low, Interval(3, 4, 20, final=True), Interval(4, 7, 9)], 3) == (1, 4)


def test_a_layer_that_is_known_well_waits_for_the_others() -> None:
    low, high = (
        [Interval(0, 4.9, 5), Interval(1, 3, 4.6)],
        [Interval(2, 4.5, 9), Interval(3, 4.8, 9), Interval(4, 7, 9)],
    )
    assert most_urgent([*low, *high], 2) == (2, 3)
    assert most_urgent([low[0], *high], 1) == (2, 3)
    assert most_urgent([low[0], Interval(2, 4.5, 9)], 1) == (2,)


def test_equal_scores_are_decided_by_depth() -> None:
    bounds = [Interval(layer, 1.0, 1.0) for layer in range(3)]
    assert certainty(bounds, 1).certain
    assert certainty(bounds, 1).tied == (0, 1, 2)
    assert certainty([*bounds, Interval(3, 2.0, 2.0)], 3).tied == ()
