"""Work that an interrupted command keeps: it goes on only from what the same inputs and options left."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from gatenorm_export.kept_work import KeptWork, forget, kept_beside
from gatenorm_export.records import StepError


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


DAMAGED = ["", "{", "[]", '{"key": 1}', "\xff", '{"key": "KEY"}', '{"key": "KEY"}\n3\n', '{"key": "KEY"}\n["b", 1']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_costs_time_and_nothing_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept"
    kept = KeptWork(path, "digest")
    kept.put("a", 1)
    key = json.loads(path.read_text().splitlines()[0])["key"]
    path.write_bytes(text.replace("KEY", key).encode("latin-1"))
    damaged = KeptWork(path, "digest")
    assert damaged.get("a") is None
    assert damaged.get("b") is None
    damaged.put("b", 2)
    assert KeptWork(path, "digest").get("b") == 2


def test_a_line_that_was_not_written_to_its_end_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept = KeptWork(path, "digest")
    for name, value in (("a", 0.1 + 0.2), ("b", "\u2028"), ("c", [3])):
        kept.put(name, value)
    path.write_bytes(path.read_bytes()[:-3])
    torn = KeptWork(path, "digest")
    assert (torn.get("a"), torn.get("b"), torn.get("c")) == (0.1 + 0.2, "\u2028", None)
    torn.put("c", [4])
    torn.put("a", 5)
    again = KeptWork(path, "digest")
    assert (again.get("a"), again.get("b"), again.get("c"), len(again)) == (5, "\u2028", [4], 3)


def test_a_record_is_made_once(tmp_path: Path) -> None:
    kind = TypeAdapter(tuple[StepError | None, str])
    made = (StepError(step="a", max_abs_error=math.inf, tolerance=0.1 + 0.2, passed=False), "why")
    kept = KeptWork(tmp_path / "kept", "digest")
    assert kept.once("a", kind, lambda: made) == made
    kept.put("b", [1.0, ["not", "a step"]])
    kept.put("c", [1.0, [None]])
    again = KeptWork(tmp_path / "kept", "digest")
    assert again.once("a", kind, lambda: pytest.fail("it was made again")) == made
    for damaged in "bc":
        assert again.once(damaged, kind, lambda: made) == made
    assert 0 < again.seconds < 1


def test_what_was_kept_is_forgotten_by_its_place(tmp_path: Path) -> None:
    KeptWork(tmp_path / "kept", "digest").put("a", 1)
    forget(tmp_path / "kept")
    forget(tmp_path / "kept")
    forget(None)
    assert list(tmp_path.iterdir()) == []


def test_where_work_is_kept() -> None:
    assert kept_beside(None, "eval") is None
    assert kept_beside(Path("out"), "eval") == Path("out/.eval-so-far")
    assert kept_beside(Path("out/eval.json"), "eval") == Path("out/.eval.json.eval-so-far")
