"""Products of bfloat16 by the CPU's own units: exact where they say so, found where they are, never needed."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatenorm_export.scoring import bfloat16_products as module
from gatenorm_export.scoring import factors, gate_norm
from gatenorm_export.scoring.bfloat16_products import BFLOAT16, bfloat16_products
from gatenorm_export.scoring.factors import bfloat16_pieces, factor, inner_products
from gatenorm_export.scoring.looking import EXACT, Looker
from gatenorm_export.scoring.signs import BlockSigns

needs_units = pytest.mark.skipif(bfloat16_products() is None, reason="no oneDNN, or a CPU without such units")


def weights(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(BFLOAT16)


@needs_units
@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 70), k=st.integers(1, 200), n=st.integers(1, 70), flips=st.tuples(st.booleans(), st.booleans()))
def test_products_are_those_of_float64_but_for_the_rounding_of_sums(m: int, k: int, n: int, flips: tuple) -> None:
    left, right = weights(m, m, k), weights(n, k, n)
    # The same values in the other order of memory.
    left, right = (np.asfortranarray(side) if flip else side for side, flip in zip((left, right), flips, strict=True))
    out = np.full((m, n), np.nan, np.float32)
    bfloat16_products().multiply(left, right, out)
    wide = left.astype(np.float64), right.astype(np.float64)
    bound = k * 2.0**-24 / (1 - k * 2.0**-24) * (np.abs(wide[0]) @ np.abs(wide[1]))
    assert (np.abs(out - wide[0] @ wide[1]) <= bound).all()


@needs_units
def test_threads_multiply_side_by_side() -> None:
    left, right = weights(0, 64, 128), weights(1, 128, 48)
    expected = left.astype(np.float64) @ right.astype(np.float64)
    wrong: list[int] = []

    def work(number: int) -> None:
        module.limit_threads(1)
        for _ in range(50):
            out = np.empty((64, 48), np.float32)
            bfloat16_products().multiply(left, right, out)
            if not np.allclose(out, expected, rtol=1e-5, atol=1e-4):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("power", [-20, 0, 20])
def test_two_pieces_are_a_float32_but_for_2_to_the_minus_17(power: int) -> None:
    values = np.ldexp(np.random.default_rng(0).normal(size=(40, 7)), power).astype(np.float32)
    pieces, count = bfloat16_pieces(values)
    assert count == 2
    assert pieces.dtype == BFLOAT16
    added = pieces.astype(np.float64).reshape(40, 2, 7).sum(axis=1)
    assert (np.abs(added - values) <= np.abs(values) * 2.0**-17).all()
    again, count = bfloat16_pieces(pieces)
    assert count == 1
    assert again is pieces


@needs_units
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("out", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
def test_sums_are_those_of_float64_but_for_rounding(count: int, out: type) -> None:
    parts, total = weights(count, count, 16, 48), np.empty((16, 48), out)
    bfloat16_products().add(parts, total)
    wide = parts.astype(np.float64)
    bound = count * 2.0**-24 * np.abs(wide).sum(axis=0)
    if out is BFLOAT16:
        bound += 2.0**-8 * np.abs(wide.sum(axis=0))
    assert (np.abs(total.astype(np.float64) - wide.sum(axis=0)) <= bound).all()


@needs_units
@pytest.mark.parametrize("rows", [64, 16])
def test_factors_multiply_as_numpy_does(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = weights(2, 64, 96)
    fast = factor(stored, rows, 16)
    monkeypatch.setattr(factors, "bfloat16_products", lambda: None)
    plain = factor(stored, rows, 16)
    assert "oneDNN" in fast.arithmetic
    assert plain.arithmetic == ""
    rng = np.random.default_rng(3)
    right, below = rng.normal(size=(96, 5)).astype(np.float32), rng.normal(size=(rows, 5)).astype(np.float32)
    wide = stored.astype(np.float64).reshape(rows // 16, 64 // rows, 16, 96).sum(axis=1).reshape(rows, 96)
    signs = BlockSigns(96, 48, rng)
    projected = fast.project(signs)
    assert projected.dtype == BFLOAT16
    assert fast.roundings == (1 if rows == 64 else 2)
    # What is rounded before it is projected shows where signs cancel each other.
    abs_ = 1e-4 if rows == 64 else 2.0**-8 * np.abs(wide).sum(axis=1).max()
    assert projected.astype(np.float32) == pytest.approx(plain.project(signs), rel=2.0**-8, abs=abs_)
    for one in (fast, plain):
        assert one.times(right) == pytest.approx(wide @ right, abs=1e-4)
        assert one.transposed_times(below) == pytest.approx(wide.T @ below, abs=1e-4)


def _projections(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    left, right = (rng.normal(size=(1280, 256)).astype(np.float32) for _ in range(2))
    if kind == "alike":
        left[:], right[:] = left[0], right[0]
    elif kind == "few directions":
        left[:], right[:] = (one[:, :2] @ rng.normal(size=(2, 256)) for one in (left, left))
    elif kind == "unlike rows":
        scale = np.exp(2 * rng.normal(size=(1280, 1)))
        left, right = (one * scale for one in (left, right))
    elif kind == "cancelling":
        # What half of the rows add, the other half takes off, but for a thousandth.
        left[640:], right[640:] = left[:640], -right[:640] * np.float32(1.001)
    return left.astype(np.float32), right.astype(np.float32)


@needs_units
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("kind", ["noise", "alike", "few directions", "unlike rows", "cancelling"])
def test_rounding_of_projections_is_known(kind: str, sides: int) -> None:
    left, right = _projections(kind)
    exact = float(np.linalg.norm(left.astype(np.float64).T @ right))
    found, off = inner_products(left if sides == 1 else left.astype(BFLOAT16), right.astype(BFLOAT16), sides)
    assert abs(float(np.linalg.norm(found)) - exact) < off
    if kind != "cancelling":
        assert off < 0.005 * exact
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    unrounded, nothing = inner_products(left, right, 0)
    assert nothing == 0.0
    assert unrounded == pytest.approx(left.astype(np.float64).T @ right, abs=1e-5 * scale)


@needs_units
def test_a_large_exact_score_uses_them_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.modules["gatenorm_export.scoring.gate_norm"], "_FLOAT64_UP_TO_FLOPS", 0)
    query, key = weights(4, 96, 64), weights(5, 96, 64)
    found = Looker(EXACT, 16, "all-heads", 0, None)._exact(0, (query, key), 0)
    exact = gate_norm(query.astype(np.float64), key.astype(np.float64), head_dim=16)
    assert "oneDNN" in found.arithmetic
    assert found.low <= exact <= found.high


@pytest.fixture
def fresh():
    bfloat16_products.cache_clear()
    yield
    bfloat16_products.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_the_package_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert bfloat16_products() is None


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", ["a link", "another size", "elsewhere", "no library"])
def test_only_the_file_that_the_package_lists_is_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lib" / "libdnnl.so.3"
    file.parent.mkdir()
    file.write_bytes(b"no library at all")
    if kind == "a link":
        file.rename(tmp_path / "lib" / "other")
        file.symlink_to("other")

    class Listed:
        name, size = "libdnnl.so.3", 99 if kind == "another size" else len(b"no library at all")

        def locate(self) -> str:
            return os.fspath(file)

    root = tmp_path / "venv" if kind == "elsewhere" else tmp_path
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [Listed()])
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name, scheme: os.fspath(root))
    if kind != "no library":
        assert module._library_file() is None
    assert bfloat16_products() is None


@pytest.mark.usefixtures("fresh")
def test_a_cpu_without_such_units_takes_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    if module._library_file() is None:
        pytest.skip("oneDNN is not installed")
    monkeypatch.setattr(module, "_ISA_BFLOAT16", 1 << 30)
    assert bfloat16_products() is None
