"""Sketched scores: the interval holds the exact score whatever the spectrum, and certain layers are the lowest ones."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatenorm_export.scoring import factors, gate_norm
from gatenorm_export.scoring.bfloat16_products import BFLOAT16, bfloat16_products
from gatenorm_export.scoring.certify import Interval, certainty, most_urgent, undecided
from gatenorm_export.scoring.gate_norm import _compute, exact_score
from gatenorm_export.scoring.signs import SIGNS_PER_ROW, BlockSigns
from gatenorm_export.scoring.sketch import Estimate, Layer, estimate, sketched

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


@pytest.fixture(params=["numpy", "oneDNN"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """bfloat16 weights are multiplied by numpy, or by the CPU's own units."""
    if request.param == "numpy":
        monkeypatch.setattr(factors, "bfloat16_products", lambda: None)
    elif bfloat16_products() is None:
        pytest.skip("no oneDNN, or a CPU without products of bfloat16")
    return str(request.param)


def sketch(query: np.ndarray, key: np.ndarray, *, columns: int, seed: int, rank: int = 0) -> Estimate:
    layer = Layer.of(query, key, 16)
    return estimate(layer, [sketched(layer, columns=columns, seed=(seed,))], rank=rank)


@pytest.mark.parametrize("aligned", [False, True], ids=["turned", "along the axes"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_holds_the_exact_score(name: str, aligned: bool, arithmetic: str) -> None:
    pair = with_spectrum(SPECTRA[name], np.random.default_rng(1), aligned=aligned)
    query, key = (weights.astype(BFLOAT16) for weights in pair)
    exact = gate_norm(query.astype(np.float64), key.astype(np.float64), head_dim=16)
    layer = Layer.of(query, key, 16)
    assert ("oneDNN" in layer.b.arithmetic) == (arithmetic == "oneDNN")
    estimates: dict[int, list[float]] = {0: [], 8: []}
    for seed in range(100):
        once = sketched(layer, columns=96, seed=(seed,))
        for rank, squares in estimates.items():
            found = estimate(layer, [once], rank=rank)
            assert found.low <= exact <= found.high
            squares.append(found.score**2)
    for squares in estimates.values():
        spread = np.std(squares) / np.sqrt(len(squares))
        # Unbiased: the mean lies within five standard errors of the truth, and what float32 rounds.
        assert np.mean(squares) == pytest.approx(exact**2, abs=5 * spread + 1e-5 * exact**2)


def test_both_arithmetics_see_the_same_signs_and_directions() -> None:
    if bfloat16_products() is None:
        pytest.skip("no oneDNN, or a CPU without products of bfloat16")
    pair = with_spectrum(SPECTRA["slow power law"], np.random.default_rng(12), aligned=False)
    stored = [weights.astype(BFLOAT16) for weights in pair]
    for rank in (0, 16):
        fast = sketch(*stored, columns=96, seed=3, rank=rank)
        plain = sketch(*(weights.astype(np.float32) for weights in stored), columns=96, seed=3, rank=rank)
        # The fast one rounds what it projects, and its interval allows for it.
        assert fast.score == pytest.approx(plain.score, rel=1e-3)
        assert (fast.low, fast.high) == pytest.approx((plain.low, plain.high), rel=1e-2)
        assert fast.high - fast.low > plain.high - plain.low


@pytest.mark.parametrize("name", ["flat", "slow power law", "two levels"])
def test_the_interval_is_worth_something(name: str) -> None:
    """An interval from nothing to infinity would hold every score."""
    query, key = with_spectrum(SPECTRA[name], np.random.default_rng(2), aligned=False)
    plain = sketch(query, key, columns=96, seed=0)
    refined = sketch(query, key, columns=96, seed=0, rank=24)
    assert (refined.high - refined.low) / refined.score < 0.3
    if name != "two levels":
        assert (plain.high - plain.low) / plain.score < 0.6


def test_taking_directions_exactly_narrows_a_steep_spectrum() -> None:
    query, key = with_spectrum(SPECTRA["power law"], np.random.default_rng(3), aligned=False)
    plain = sketch(query, key, columns=128, seed=0)
    refined = sketch(query, key, columns=128, seed=0, rank=16)
    assert refined.high - refined.low < (plain.high - plain.low) / 5


@pytest.mark.parametrize("rank", [0, 8])
def test_a_second_sketch_narrows_the_interval_by_the_root_of_two(rank: int) -> None:
    query, key = with_spectrum(SPECTRA["slow power law"], np.random.default_rng(13), aligned=False)
    exact = gate_norm(query, key, head_dim=16)
    layer = Layer.of(query, key, 16)
    widths = []
    for seed in range(30):
        both = [sketched(layer, columns=96, seed=(seed, number)) for number in (0, 1)]
        found = [estimate(layer, sketches, rank=rank) for sketches in (both[:1], both[1:], both)]
        assert all(one.low <= exact <= one.high for one in found)
        widths.append([one.high - one.low for one in found])
    first, second, together = np.mean(widths, axis=0)
    assert together == pytest.approx((first + second) / 2 / np.sqrt(2), rel=0.1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), fall=st.floats(0, 3), spikes=st.integers(0, 5), rank=st.sampled_from([0, 4, 16]))
def test_random_spectra_lie_in_their_intervals(seed: int, fall: float, spikes: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.arange(1, WIDTH + 1) ** -fall * rng.lognormal(0, 1, WIDTH)
    values[:spikes] *= rng.uniform(1, 100, spikes)
    query, key = with_spectrum(values, rng, aligned=bool(seed % 2))
    found = sketch(query, key, columns=64, seed=seed, rank=rank)
    assert found.low <= gate_norm(query, key, head_dim=16) <= found.high


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("rank", [0, 8])
def test_grouped_queries_are_summed(rank: int) -> None:
    """Before they are projected, or behind it: products are linear."""
    rng = np.random.default_rng(4)
    query, key = rng.normal(size=(256, 160)).astype(BFLOAT16), rng.normal(size=(64, 160)).astype(BFLOAT16)
    exact = gate_norm(query.astype(np.float64), key.astype(np.float64), head_dim=16)
    estimates = [sketch(query, key, columns=64, seed=seed, rank=rank).score for seed in range(60)]
    assert np.mean(estimates) == pytest.approx(exact, rel=0.02)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("alike", [False, True], ids=["heads of their own", "heads alike"])
@pytest.mark.parametrize("group", [2, 8, 12])
def test_the_interval_of_grouped_queries_holds_the_exact_score(group: int, alike: bool) -> None:
    rng = np.random.default_rng(group)
    query, key = rng.normal(size=(32 * group, 160)), rng.normal(size=(32, 160)).astype(BFLOAT16)
    if alike:
        query[:] = np.tile(query[:16] / 3, (2 * group, 1))
    stored = query.astype(BFLOAT16)
    exact = gate_norm(stored.astype(np.float64), key.astype(np.float64), head_dim=16)
    layer = Layer.of(stored, key, 16)
    for seed in range(40):
        once = sketched(layer, columns=96, seed=(seed,))
        for rank in (0, 8):
            found = estimate(layer, [once], rank=rank)
            assert found.low <= exact <= found.high


@pytest.mark.usefixtures("arithmetic")
def test_a_seed_is_a_result() -> None:
    query, key = (
        weights.astype(BFLOAT16) for weights in with_spectrum(SPECTRA["flat"], np.random.default_rng(5), aligned=False)
    )
    runs = [sketch(query, key, columns=64, seed=seed, rank=8) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.usefixtures("arithmetic")
def test_weights_of_zeros_have_no_direction_to_project() -> None:
    zeros = np.zeros((64, 161), BFLOAT16)
    found = sketch(zeros, zeros, columns=48, seed=0, rank=8)
    assert (found.score, found.low) == (0.0, 0.0)


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
    assert total / 400 / SIGNS_PER_ROW == pytest.approx(rows.astype(np.float64) @ rows.T, abs=0.12 * width)


@pytest.mark.parametrize("width", [1856, 2048, 3200, 4096, 5000, 5120, 6144, 8192])
def test_blocks_divide_the_widths_of_models(width: int) -> None:
    """Rows are projected as they lie in memory then, without a copy."""
    for columns in (256, 364, 512):
        signs = BlockSigns(width, columns, np.random.default_rng(0))
        assert width % signs.block == 0
        assert 0.6 < signs.columns / columns < 1.7


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("rank", [0, 32])
def test_rows_that_cancel_do_not_hide_what_is_rounded(rank: int) -> None:
    """One channel on either side holds nearly all of the weights, and nothing of their product."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        query, key = rng.normal(size=(2, 256, 256))
        query[:, 3] *= 2000
        across = rng.normal(size=256)
        across -= query[:, 3] * (query[:, 3] @ across) / (query[:, 3] @ query[:, 3])
        key[:, 5] = 2000 * across
        stored = [side.astype(BFLOAT16) for side in (query, key)]
        found = sketch(*stored, columns=128, seed=seed, rank=rank)
        exact = gate_norm(*(side.astype(np.float64) for side in stored), head_dim=16)
        assert found.low <= exact <= found.high


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rank", [0, 8])
def test_a_bad_weight_shows_in_the_estimate(bad: float, rank: int) -> None:
    pair = with_spectrum(SPECTRA["flat"], np.random.default_rng(6), aligned=False)
    query, key = (weights.astype(BFLOAT16) for weights in pair)
    key[17, 33] = bad
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(sketch(query, key, columns=64, seed=0, rank=rank).score)


@pytest.mark.parametrize("stored", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(64, 64, 96), (64, 16, 96), (96, 96, 64), (96, 32, 96)])
def test_float32_keeps_within_its_bound(shape: tuple[int, int, int], stored: type) -> None:
    """The bound on rounding holds, and is not so loose that it says nothing."""
    rows, key_rows, width = shape
    rng = np.random.default_rng(7)
    query, key = (
        rng.normal(size=(rows, width)).astype(stored),
        rng.normal(size=(key_rows, width)).astype(stored),
    )
    exact = exact_score(query, key, head_dim=16)
    found = _compute(query, key, 16, np.float32)
    assert exact.arithmetic == "float64"
    assert abs(found.score / exact.score - 1) < found.rounding < 1e-2
    assert exact.rounding < 1e-10


@pytest.mark.parametrize("power", [-90, -60, -56, 0, 56, 60, 90])
def test_weights_that_balance_each_other_keep_their_score(power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2^p Wq and 2^-p Wk have the product of Wq and Wk, also where the squares of either leave float32."""
    monkeypatch.setattr(sys.modules["gatenorm_export.scoring.gate_norm"], "_FLOAT64_UP_TO_FLOPS", 0)
    rng = np.random.default_rng(14)
    query, key = rng.normal(size=(64, 96)).astype(BFLOAT16), rng.normal(size=(32, 96)).astype(BFLOAT16)
    exact = gate_norm(query.astype(np.float64), key.astype(np.float64), head_dim=16)
    scaled = [np.ldexp(side.astype(np.float32), sign * power) for side, sign in ((query, 1), (key, -1))]
    for stored in (np.float32, BFLOAT16):
        with np.errstate(over="ignore", invalid="ignore"):
            found = exact_score(*(side.astype(stored) for side in scaled), head_dim=16)
        assert abs(found.score / exact - 1) < found.rounding < 0.01


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
    low, high = [Interval(0, 1, 6), Interval(1, 1, 8), Interval(2, 3, 5)], [Interval(3, 4, 17), Interval(4, 7, 11)]
    assert most_urgent([*low, *high], 3) == (1, 3)
    assert most_urgent([*low, Interval(3, 4, 17, final=True), Interval(4, 7, 11)], 3) == (1, 4)


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
