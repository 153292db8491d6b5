"""Small pieces of free memory are held while large models are loaded, as far as memory holds the models too."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from bench_cases import FakeBackend, FakeMemory

from gatenorm_export import memory_pieces
from gatenorm_export.benching import BenchRequest, run_bench
from gatenorm_export.memory import PROCESS, kernel_bytes
from gatenorm_export.memory_pieces import bytes_in_pieces, pieces_kept_aside

MB = 1 << 20
BUDDIES = """\
Node 0, zone    DMA32      0      0      0      0      0      0      0      0     64      7      0
Node 0, zone   Normal  16384      0      0      0      0      0      0      0     64      0    500
"""
"""192 MB in pieces: 64 of single pages, and twice 64 in runs of 1 MB. Longer runs do not count; pages are of 4 kB."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 10 GB free; its file of free memory."""
    (tmp_path / "buddyinfo").write_text(BUDDIES)
    (tmp_path / "meminfo").write_text("MemTotal: 20000000 kB\nMemFree: 10000000 kB\n")
    monkeypatch.setattr(memory_pieces, "_BUDDIES", tmp_path / "buddyinfo")
    monkeypatch.setattr(memory_pieces, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory_pieces, "free_memory", lambda: 10**10)
    monkeypatch.setattr(memory_pieces.mmap, "PAGESIZE", 4096)
    return tmp_path / "meminfo"


def resident() -> int:
    return kernel_bytes(PROCESS, "VmRSS:") or 0


def test_runs_of_under_two_megabytes_are_pieces(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bytes_in_pieces() == 192 * MB
    monkeypatch.setattr(memory_pieces, "_BUDDIES", machine.with_name("none"))
    assert bytes_in_pieces() == 0


def test_pieces_are_held_and_given_back(machine: Path) -> None:
    before = resident()
    with pieces_kept_aside(300 * MB) as left:
        assert left == 0
        assert 180 * MB < resident() - before < 220 * MB
    assert resident() - before < 20 * MB


@pytest.mark.parametrize(("free_mb", "held_mb"), [(350, 0), (450, 128), (300, 0)])
def test_the_models_have_what_they_need(machine: Path, free_mb: int, held_mb: int) -> None:
    machine.write_text(f"MemFree: {free_mb * 1024} kB\n")
    before = resident()
    with pieces_kept_aside(300 * MB) as left:
        assert left == (192 - held_mb) * MB
        assert abs(resident() - before - held_mb * MB) < 20 * MB


def test_small_models_take_no_time(machine: Path) -> None:
    before = resident()
    with pieces_kept_aside(MB) as left:
        assert left == 0
        assert resident() - before < 20 * MB


def test_a_bench_says_that_pieces_were_left() -> None:
    class Scattered(FakeMemory):
        needed: tuple[int, ...] = ()

        def for_loading(self, needed: int) -> AbstractContextManager[int]:
            self.needed += (needed,)
            return nullcontext(10**9)

    backend = FakeBackend()
    backend.memory = Scattered()
    request = BenchRequest(sequences=(8,), repeats=8)
    report = run_bench(backend, backend.pair(), request)
    assert sum("lay in pieces" in note for note in report.notes) == 1
    # Twice the file of each, at each loading.
    assert backend.memory.needed == (400, 400, 400, 400)
    apart = run_bench(backend, backend.pair(), dataclasses.replace(request, order="sequential"))
    assert backend.memory.needed[4:] == (200, 200)
    assert any("lay in pieces" in note for note in apart.notes)
