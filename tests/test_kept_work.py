"""Work that an interrupted command keeps: it goes on only from what the same inputs and options left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gatenorm_export.kept_work import KeptWork, kept_beside


def test_the_same_command_finds_what_it_left(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept = KeptWork(path, "digest", {"limit": 3})
    assert kept.get("a") is None
    kept.put("a", [1.5, None])
    again = KeptWork(path, "digest", {"limit": 3})
    assert again.get("a") == [1.5, None]
    assert len(again) == 1
    again.forget()
    assert not path.exists()


def test_other_inputs_or_options_find_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    KeptWork(path, "digest", {"limit": 3}).put("a", 1)
    assert KeptWork(path, "digest", {"limit": 4}).get("a") is None
    assert KeptWork(path, "other", {"limit": 3}).get("a") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "\xff", json.dumps({"key": "KEY", "values": 3})])
def test_a_damaged_file_costs_time_and_nothing_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept"
    kept = KeptWork(path, "digest")
    kept.put("a", 1)
    key = json.loads(path.read_text())["key"]
    path.write_bytes(text.replace("KEY", key).encode("latin-1"))
    damaged = KeptWork(path, "digest")
    assert damaged.get("a") is None
    damaged.put("b", 2)
    assert KeptWork(path, "digest").get("b") == 2


def test_where_work_is_kept() -> None:
    assert kept_beside(None, "eval") is None
    assert kept_beside(Path("out"), "eval") == Path("out/.eval-so-far")
    assert kept_beside(Path("out/eval.json"), "eval") == Path("out/.eval.json.eval-so-far")
