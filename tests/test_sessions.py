"""ONNX Runtime sessions as everything that runs a graph opens them."""

from __future__ import annotations

import os

import pytest

from gatenorm_export.processor import cores, usable_threads
from gatenorm_export.sessions import cpu_options


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("0", 8), ("", 8), ("all", 8), ("64", 8), ("3", 3)])
def test_threads_are_as_many_as_torch_would_take_and_no_more_than_cores(
    asked: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert (cores(), usable_threads()) == (8, threads)
    assert cpu_options().intra_op_num_threads == threads


def test_a_whole_machine_is_left_to_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pins its threads to cores then, which it does not do for a number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cpu_options().intra_op_num_threads == 0
