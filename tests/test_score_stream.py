"""Layers as a stream: cuts become certain, memory stays at two layers, and every way of computing gives one score."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_zoo import row

from gatenorm_export.checkpoints import tensors
from gatenorm_export.errors import MissingPartError, RefusedError, UsageError
from gatenorm_export.scoring import ScoreRequest, gate_norm, score_model, stream
from gatenorm_export.scoring.devices import Device, pick_device, product_score
from gatenorm_export.scoring.looking import NotFinite, Step
from gatenorm_export.scoring.pairing import in_pairs
from gatenorm_export.scoring.stream import score_layers
from gatenorm_export.scoring.weights import TowerWeights
from gatenorm_export.sources import resolve_model

HEAD_DIM = 16


class Layer:
    """A layer in memory that counts how often it was read."""

    def __init__(self, layer: int, query: np.ndarray, key: np.ndarray) -> None:
        self.layer, self.query, self.key, self.reads = layer, query, key, 0

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        self.reads += 1
        return self.query, self.key

    def take_digest(self) -> None:
        """There is none."""


def random_layers(scales: list[float], *, rows: int = 128, key_rows: int = 128, width: int = 128) -> list[Layer]:
    layers = []
    for layer, scale in enumerate(scales):
        rng = np.random.default_rng((9, layer))
        query = (scale * rng.normal(size=(rows, width))).astype(np.float32)
        layers.append(Layer(layer, query, rng.normal(size=(key_rows, width)).astype(np.float32)))
    return layers


def lowest(layers: list[Layer], n: int) -> set[int]:
    scores = {one.layer: gate_norm(one.query, one.key, head_dim=HEAD_DIM) for one in layers}
    return set(sorted(scores, key=lambda layer: (scores[layer], -layer))[:n])


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers take the paths of large ones, with sketches as small as they are."""
    # The package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules["gatenorm_export.scoring.gate_norm"], "_FLOAT64_UP_TO_FLOPS", 0)
    monkeypatch.setattr(Step, "flops", lambda step, rows, width: 0.0)
    steps = Step("sketch", columns=64), Step("refined sketch", rank=16), Step("finest sketch", columns=64, rank=32)
    monkeypatch.setattr(stream, "SKETCHES", steps)


@pytest.mark.usefixtures("everything_is_large")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.sets(st.integers(0, 10), min_size=1, max_size=3), kv=st.booleans())
def test_certain_layers_are_the_exact_lowest(seed: int, cuts: set[int], kv: bool) -> None:
    scales = list(np.random.default_rng(seed).lognormal(0, 0.5, 10))
    layers = random_layers(scales, key_rows=32 if kv else 128)
    result = score_layers(layers, head_dim=HEAD_DIM, cuts=sorted(cuts), seed=seed)
    assert [one.n for one in result.certainties] == sorted(cuts)
    for cut in result.certainties:
        assert cut.certain
        ranked = sorted(result.layers, key=lambda one: (one.score, -one.layer))
        assert {one.layer for one in ranked[: cut.n]} == lowest(layers, cut.n)
    for one, layer in zip(result.layers, layers, strict=True):
        assert one.low <= gate_norm(layer.query, layer.key, head_dim=HEAD_DIM) * (1 + 1e-6)
        assert one.high >= gate_norm(layer.query, layer.key, head_dim=HEAD_DIM) * (1 - 1e-6)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("protect", [(), (2,)])
def test_no_score_is_left_that_could_be_anything(protect: tuple[int, ...]) -> None:
    """One direction that holds all of a layer leaves its sketch without an upper end, although the cut is decided."""
    layers = random_layers([1.0, 1.1, 100.0, 0.1])
    layers[2].query[:, 1:] = layers[2].key[:, 1:] = 0
    first = score_layers(layers[2:3] + layers[3:], head_dim=HEAD_DIM, cuts=[1], protect=protect)
    result = score_layers(layers, head_dim=HEAD_DIM, cuts=[1], protect=protect)
    assert result.certainties[0].certain
    assert layers[2].reads > 2
    for scoring in (first, result):
        assert all(np.isfinite(one.high) for one in scoring.layers)


@pytest.mark.usefixtures("everything_is_large")
def test_only_layers_near_the_cut_are_read_again() -> None:
    layers = random_layers([100.0, 50.0, 1.02, 1.0, 0.1, 0.01])
    result = score_layers(layers, head_dim=HEAD_DIM, cuts=[3])
    assert result.certainties[0].certain
    assert [one.reads for one in layers][:2] == [1, 1]
    assert [one.reads for one in layers][4:] == [1, 1]
    assert layers[2].reads > 1
    assert result.bound is not None
    assert result.looks["sketch"] == 6


@pytest.mark.usefixtures("everything_is_large")
def test_sketches_of_decided_layers_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    scoring, ended = stream._scoring, {}
    monkeypatch.setattr(
        stream, "_scoring", lambda order, found, *rest: ended.update(found) or scoring(order, found, *rest)
    )
    result = score_layers(random_layers([9.0, 8.0, 3.0, 2.0, 0.2, 0.1]), head_dim=HEAD_DIM, cuts=[3])
    assert result.certainties[0].certain
    assert result.looks["sketch"] == 6
    assert not any(one.sketches for one in ended.values())


@pytest.mark.usefixtures("everything_is_large")
def test_layers_that_rounding_cannot_tell_apart_are_tied() -> None:
    layers = random_layers([2.0, 1.0, 1.0, 0.1])
    layers[2].query, layers[2].key = layers[1].query.copy(), layers[1].key.copy()
    [cut] = score_layers(layers, head_dim=HEAD_DIM, cuts=[2]).certainties
    assert not cut.certain
    assert cut.tied == (1, 2)
    [clear] = score_layers(layers, head_dim=HEAD_DIM, cuts=[3]).certainties
    assert clear.certain
    assert clear.tied == ()


@pytest.mark.usefixtures("everything_is_large")
def test_protected_layers_take_no_part_in_a_cut() -> None:
    layers = random_layers([2.0, 1.0, 1.0, 0.1])
    layers[2].query, layers[2].key = layers[1].query.copy(), layers[1].key.copy()
    [cut] = score_layers(layers, head_dim=HEAD_DIM, cuts=[2], protect=(1,)).certainties
    assert cut.certain
    [cut] = score_layers(layers, head_dim=HEAD_DIM, cuts=[1], protect=(3,)).certainties
    assert cut.tied == (1, 2)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("asked", [{"cuts": ()}, {"cuts": (2,), "exact": True}, {"cuts": (2,), "variant": "per-head"}])
def test_exact_scores_are_exact(asked: dict) -> None:
    layers = random_layers([3.0, 2.0, 1.0])
    result = score_layers(layers, head_dim=HEAD_DIM, **asked)
    variant = asked.get("variant", "all-heads")
    for one, layer in zip(result.layers, layers, strict=True):
        query, key = layer.query.astype(np.float64), layer.key.astype(np.float64)
        assert one.low == one.high == one.score
        assert one.score == pytest.approx(gate_norm(query, key, head_dim=HEAD_DIM, variant=variant), rel=1e-6)
    assert result.bound is None
    assert "off by less than" in result.arithmetic


def test_small_layers_are_never_sketched() -> None:
    layers = random_layers([3.0, 2.0, 1.0])
    result = score_layers(layers, head_dim=HEAD_DIM, cuts=[1])
    assert result.bound is None
    assert result.looks == {"float64": 3}
    assert [one.reads for one in layers] == [1, 1, 1]


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("cuts", [(), (2,)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_weight_names_its_layer(bad: float, cuts: tuple[int, ...]) -> None:
    layers = random_layers([4.0, 3.0, 2.0, 1.0])
    layers[2].key[5, 7] = bad
    with pytest.raises(NotFinite, match="layer 2") as caught, np.errstate(invalid="ignore"):
        score_layers(layers, head_dim=HEAD_DIM, cuts=cuts)
    assert caught.value.layer == 2


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("power", [-60, 60])
def test_weights_beyond_float32_squares_are_scored_in_float64(power: int) -> None:
    layers = random_layers([2.0, 1.0])
    for layer in layers:
        layer.query = np.ldexp(layer.query, power).astype(np.float32)
        layer.key = np.ldexp(layer.key, power).astype(np.float32)
    result = score_layers(layers, head_dim=HEAD_DIM, cuts=[1])
    assert result.certainties[0].certain
    for one, layer in zip(result.layers, layers, strict=True):
        expected = np.linalg.norm(layer.query.astype(np.float64).T @ layer.key.astype(np.float64))
        assert one.score == pytest.approx(expected, rel=1e-9)


def test_no_more_than_two_layers_are_in_memory_and_one_is_read_at_a_time() -> None:
    alive, reading, most, lock = 0, 0, [0, 0], threading.Lock()

    class Counted:
        def __init__(self, layer: int) -> None:
            self.layer = layer

        def load(self) -> tuple[np.ndarray, np.ndarray]:
            nonlocal alive, reading
            with lock:
                alive, reading = alive + 1, reading + 1
                most[:] = max(most[0], alive), max(most[1], reading)
            time.sleep(0.005)
            with lock:
                reading -= 1
            return np.zeros((2, 2)), np.zeros((2, 2))

        def take_digest(self) -> None:
            """There is none."""

    def work(one: Counted, turn: threading.Lock) -> int:
        nonlocal alive
        with turn:
            one.load()
        time.sleep(0.01)
        with lock:
            alive -= 1
        return one.layer * 10

    assert list(in_pairs([Counted(layer) for layer in range(8)], work)) == [(layer, layer * 10) for layer in range(8)]
    assert most == [2, 1]


def test_the_first_error_comes_through_and_reading_stops() -> None:
    read = []

    class Damaged:
        def __init__(self, layer: int) -> None:
            self.layer = layer

        def load(self) -> tuple[np.ndarray, np.ndarray]:
            read.append(self.layer)
            if self.layer == 1:
                raise OSError("no such tensor")
            return np.zeros((2, 2)), np.zeros((2, 2))

        def take_digest(self) -> None:
            """There is none."""

    with pytest.raises(OSError, match="no such tensor"):
        list(in_pairs([Damaged(layer) for layer in range(50)], lambda one, turn: one.load()))
    assert len(read) < 10


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("family", ["llama-gqa", "llama-mha"])
def test_a_layer_is_digested_once_however_often_it_is_looked_at(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = resolve_model(str(row(family).save(tmp_path, dtype="bfloat16")))
    whole = score_model(spec, ScoreRequest(exact=True))
    digested, loaded = [], []
    digest, load = tensors.digest_of, TowerWeights.load
    monkeypatch.setattr(tensors, "digest_of", lambda data: digested.append(data.nbytes) or digest(data))
    monkeypatch.setattr(TowerWeights, "load", lambda self, layer: loaded.append(layer.layer) or load(self, layer))
    sketched = score_model(spec, ScoreRequest(cuts=(1,)))
    assert sketched.convention.source_digest == whole.convention.source_digest
    assert len(digested) == 2 * len(whole.layers)
    assert len(loaded) > len(whole.layers)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("key_rows", [32, 128])
def test_torch_gives_numpys_score(key_rows: int, dtype: str) -> None:
    pytest.importorskip("torch")
    import ml_dtypes  # noqa: F401 (registers bfloat16 with numpy)

    [layer] = random_layers([0.5], key_rows=key_rows)
    query, key = layer.query.astype(dtype), layer.key.astype(dtype)
    found = product_score(Device("cpu"), query, key, head_dim=HEAD_DIM)
    exact = gate_norm(query.astype(np.float64), key.astype(np.float64), head_dim=HEAD_DIM)
    assert abs(found.score / exact - 1) < min(found.rounding, 1e-5)


def test_a_device_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") is None
    with pytest.raises(UsageError, match="--device tpu: there is no such device"):
        pick_device("tpu")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") is None
    with pytest.raises(RefusedError, match="no such GPU"):
        pick_device("cuda:7")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert pick_device("auto") is None
    with pytest.raises(MissingPartError, match="needs torch"):
        pick_device("cuda")
