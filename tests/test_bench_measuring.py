"""bench on models that only write down what happens: who is called when, what is judged; and its statistics."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
from bench_cases import FakeBackend

from gatenorm_export.benching import BenchRequest, bench_markdown, run_bench
from gatenorm_export.benching.clocks import OtherWork, _others_seconds, busy, read_clocks
from gatenorm_export.benching.control import within
from gatenorm_export.benching.memory import ProcessMemory
from gatenorm_export.benching.protocol import STEPS, Footprint, Point
from gatenorm_export.benching.room import memory_needed
from gatenorm_export.benching.statistics import speedup_apart, speedup_in_turns, timing_of
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records.bench import Clocks


def test_turns_change_from_pair_to_pair_and_decode_goes_back() -> None:
    backend = FakeBackend()
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=160))
    ends = [place for place, line in enumerate(backend.log) if line.endswith("close")][1::2]
    assert len(ends) == report.loadings == 4
    for loading, end in enumerate(ends):
        log = backend.log[ends[loading - 1] + 1 if loading else 0 : end]
        # Two calls to count memory, then 2 rounds of warm-up and 40 of measuring, then one prefill each for decode.
        calls = [line.split()[0] for line in log if line.endswith("prefill 8")]
        first, second = ("base", "pruned") if loading % 2 == 0 else ("pruned", "base")
        assert calls[:2] == calls[-2:] == [first, second]
        assert calls[2:-2] == [first, second, second, first] * 21
    decodes = [line for line in backend.log if "decode" in line or "rewind" in line]
    longest, run = 0, 0
    for line in (line for line in decodes if line.startswith("base")):
        run = 0 if "rewind" in line else run + 1
        longest = max(longest, run)
    assert longest == STEPS
    assert report.alternating
    assert [found.speedup for found in report.speedups] == [2.0, 2.0]
    assert {(row.speedup, row.repeats) for row in report.rows} == {(2.0, 160)}
    assert report.rows[0].pruned.tokens_per_s == 8
    assert report.rows[1].pruned.tokens_per_s == 1
    assert report.base.kv_bytes_per_token == 64
    assert "a note" in report.notes
    assert backend.log[-2:] == ["pruned close", "base close"]


@pytest.mark.parametrize(("order", "free"), [("sequential", None), ("auto", 5_000)])
def test_one_after_the_other_where_memory_does_not_hold_both(order: str, free: int | None) -> None:
    backend = FakeBackend(free=free)
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=8, order=order))
    assert not report.alternating
    assert report.order_reason == "asked for" or "are free" in report.order_reason
    closed = backend.log.index("base close")
    assert all(line.startswith("base") for line in backend.log[: closed + 1])
    assert all(line.startswith("pruned") for line in backend.log[closed + 1 :])
    assert {row.speedup for row in report.rows} == {2.0}
    assert "one after the other" in bench_markdown(report)


def test_memory_that_holds_both_means_turns() -> None:
    backend = FakeBackend(free=10**9)
    assert run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=8)).alternating


def test_what_memory_does_not_hold_is_not_tried() -> None:
    backend = FakeBackend(free=2_000_000)
    wide = Footprint(logits_per_token=100, activations_per_token=10, scores_per_pair=4)
    pair = backend.pair()
    pair = dataclasses.replace(pair, base=dataclasses.replace(pair.base, footprint=wide))
    # Both feeds, 8 bytes for each of 3 inputs, and what the larger side's prefill takes: 24 x 2 + 110 + 4 x 1000.
    assert memory_needed([pair.base, pair.pruned], Point("prefill", 1, 1000)) == 200 + 1000 * (48 + 110 + 4000)
    report = run_bench(backend, pair, BenchRequest(sequences=(8, 1000), repeats=8))
    assert [row.name for row in report.rows] == ["prefill, 8 tokens, batch 1", "decode, 8 tokens, batch 1"]
    assert {row.reason for row in report.missing} == {
        "takes about 4.2 MB of memory, and 2.0 MB are free",
        "takes about 4.4 MB of memory, and 2.0 MB are free",
    }
    assert not [line for line in backend.log if "1000" in line]
    with pytest.raises(RefusedError, match=r"^prefill, 256 tokens, batch 100000: takes about 30\.3 GB of memory, and"):
        run_bench(backend, pair, BenchRequest(batches=(100_000,), sequences=(256,), repeats=8))
    # What is asked for in turns has to fit in turns.
    both = FakeBackend(free=2_000)
    one = BenchRequest(sequences=(64,), repeats=8, order="alternate")
    with pytest.raises(RefusedError, match=r"^prefill, 64 tokens, batch 1: takes"):
        run_bench(both, both.pair(), one)


def test_a_point_that_does_not_fit_is_named_and_the_others_are_measured() -> None:
    backend = FakeBackend()

    def fails(what: str, calls: int) -> None:
        if backend.log[-1].endswith("prefill 32"):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    backend.fails = fails
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8, 32, 2000), repeats=8))
    assert [row.name for row in report.rows] == ["prefill, 8 tokens, batch 1", "decode, 8 tokens, batch 1"]
    reasons = {row.name: row.reason for row in report.missing}
    assert "does not fit the memory" in reasons["prefill, 32 tokens, batch 1"]
    assert "does not fit the memory" in reasons["decode, 32 tokens, batch 1"]
    assert reasons["prefill, 2000 tokens, batch 1"] == "too long for the fake"
    assert "prefill, 32 tokens, batch 1" in report.verdict


@pytest.mark.parametrize("at", [1, 3, 9, 30])
def test_a_device_that_vanishes_ends_in_one_line_and_frees_both(at: int) -> None:
    backend = FakeBackend()

    def fails(what: str, calls: int) -> None:
        if calls >= at:
            raise RuntimeError("CUDA error: the launch failed\nand a page of traceback")

    backend.fails = fails
    with pytest.raises(RefusedError, match="CUDA error: the launch failed") as caught:
        run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=80))
    assert "\n" not in str(caught.value)
    assert "tokens" in str(caught.value)
    assert "base close" in backend.log


def test_minutes_that_are_used_up_name_the_rows() -> None:
    backend = FakeBackend()
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), max_minutes=0.001))
    assert not report.rows
    # A pair is told to take 3 seconds; a quarter of 8 pairs is due at each loading, and of 32.
    reasons = [
        re.fullmatch(
            r"--max-minutes was used up: (\d) pairs of calls take ([\d.]+) s, and [\d.]+ ms are left", row.reason
        )
        for row in report.missing
    ]
    assert [found and found.groups() for found in reasons] == [("2", "6.0"), ("8", "24.0")]
    assert "Nothing could be measured" in report.verdict


def test_the_roofline_says_what_is_left_on_the_table() -> None:
    backend = FakeBackend()
    request = BenchRequest(sequences=(8,), repeats=8)
    found = run_bench(backend, backend.pair(), request)
    assert "Every row" in found.verdict
    slow = dataclasses.replace(backend.pair(), pruned=backend.side("slow", 1.9))
    report = run_bench(backend, slow, request)
    assert all(row.roofline is not None and row.roofline.short and row.roofline.certain for row in report.rows)
    assert "left on the table in 2 of 2 rows" in report.verdict
    none = run_bench(backend, backend.pair(work=False), request)
    assert none.roofline_reason == "nothing is known"
    assert all(row.roofline is None for row in none.rows)


def test_default_lengths_end_where_the_context_does() -> None:
    backend = FakeBackend()
    report = run_bench(backend, backend.pair(longest=40), BenchRequest(repeats=8))
    assert {row.sequence for row in report.rows} == {16}
    short = run_bench(backend, backend.pair(longest=20), BenchRequest(repeats=8))
    assert {row.sequence for row in short.rows} == {2}


def test_a_control_that_differs_in_structure_fails() -> None:
    backend = FakeBackend()
    request = BenchRequest(sequences=(8,), repeats=8, control=Path("native"))
    same = run_bench(backend, backend.pair(), request)
    assert same.control is not None
    assert (same.control.passed, same.control.ratio, same.control.differences) == (True, 1.0, ())
    backend.control = lambda native, pair: backend.side("base", 2.0)
    other = run_bench(backend, backend.pair(), request).control
    assert other is not None
    assert other.passed is False
    assert any("bytes of weights" in line for line in other.differences)
    backend.control = lambda native, pair: backend.side("fast", 0.97)
    slower = run_bench(backend, backend.pair(), request).control
    assert slower is not None
    assert (slower.passed, slower.differences) == (False, ())
    assert "is slower by more than 2%" in slower.sentence


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [
        (0.985, 1.015, True),
        (0.985, 1.3, None),
        (0.7, 1.015, None),
        (0.9, 1.1, None),
        (0.9, 0.97, False),
        # Faster than one without those layers: the two are not what a control compares.
        (1.03, 1.2, False),
    ],
)
def test_a_control_holds_by_its_whole_interval(low: float, high: float, passed: bool | None) -> None:
    assert within(low, high, 0.02) is passed


@pytest.mark.parametrize(
    "changes",
    [{"repeats": 4}, {"repeats": 0}, {"batches": (0,)}, {"sequences": (8, 8)}, {"max_minutes": 0.0}],
    ids=str,
)
def test_requests_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        BenchRequest(**changes)


def test_quantiles_and_their_interval() -> None:
    seconds = np.arange(1, 102) / 1000
    found = timing_of(seconds, 5)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((51, 91, 100))
    assert found.p50_low_ms < 51 < found.p50_high_ms
    assert found.tokens_per_s == pytest.approx(5 / 0.051)


def test_apart_the_interval_holds_the_ratio_and_widens_with_noise() -> None:
    rng = np.random.default_rng(1)
    calm, wild = (np.exp(rng.normal(0, sigma, (2, 400))) * [[2.0], [1.0]] for sigma in (0.01, 0.3))
    middle, low, high = speedup_apart(calm)
    assert low < 2.0 < high
    assert middle == pytest.approx(2.0, rel=0.01)
    _, low_wild, high_wild = speedup_apart(wild)
    assert high_wild - low_wild > 5 * (high - low)


def test_the_order_of_loading_is_not_in_the_ratio() -> None:
    """The model that is loaded first is 4 % slower: the same model twice is as fast as itself."""
    rng = np.random.default_rng(2)

    def loadings(speedup: float, spread: float, n: int = 4) -> list[np.ndarray]:
        slower = [np.array([[1.04], [1.0]]), np.array([[1.0], [1.04]])]
        noise = [np.exp(rng.normal(0, spread, (2, 1))) for _ in range(n)]
        calls = [np.exp(rng.normal(0, 0.02, (2, 100))) * [[speedup], [1.0]] for _ in range(n)]
        return [slower[place % 2] * noise[place] * calls[place] for place in range(n)]

    for speedup in (1.0, 1.2):
        middle, low, high = speedup_in_turns(loadings(speedup, 0), loadings(speedup, 0))
        assert low < speedup < high
        assert middle == pytest.approx(speedup, rel=0.01)
    assert speedup_in_turns(loadings(1.0, 0, 2))[0] == pytest.approx(1.0, rel=0.01)
    # What differs from loading to loading is in the interval, as far as so few of them show it.
    held = 0
    for _ in range(40):
        _, low, high = speedup_in_turns(loadings(1.0, 0.01), loadings(1.0, 0.01))
        held += low < 1 < high
    assert held >= 30


def test_the_kernel_tells_the_load_and_the_peak() -> None:
    clocks = read_clocks()
    assert clocks.load_1min is not None
    assert busy(Clocks(load_1min=3.0), 4) is not None
    assert busy(Clocks(load_1min=0.5), 4) is None
    memory = ProcessMemory()
    memory.begin()
    held = np.ones(32_000_000, np.uint8)
    peak = memory.peak()
    assert peak is not None
    assert 30e6 < peak < 200e6
    assert held[0] == 1
    assert (memory.available() or 0) > 0


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _others_seconds()
    assert found is not None
    assert found > 0
    seconds = iter([100.0, 100.4, 100.0, 101.5])
    clock = iter([0.0, 1.0, 0.0, 1.0])
    monkeypatch.setattr("gatenorm_export.benching.clocks._others_seconds", lambda: next(seconds))
    monkeypatch.setattr("gatenorm_export.benching.clocks.time.monotonic", lambda: next(clock))
    assert OtherWork().busy(2) is None
    said = OtherWork().busy(2)
    assert said is not None
    assert said.startswith(
        "the machine was not idle: other work took 1.5 threads while this one computed with 2 threads;"
    )


def test_the_kernels_count_holds_own_work_too() -> None:
    """A quarter of a second of work moves the count of all processes, from which it is taken to leave the others'."""

    def total() -> float:
        own = os.times()
        return (_others_seconds() or 0) + own.user + own.system

    before, began = total(), os.times()
    while os.times().user - began.user < 0.25:
        sum(range(10_000))
    assert total() - before > 0.2
