"""The folder of a recovery: what is refused, what is taken away, and what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatenorm_export.errors import OutputError
from gatenorm_export.recovering.claiming import MARK, claimed

NAMES = {"folders": ("checkpoint", "pruned"), "files": ("recovery.json",)}


def test_what_others_made_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pruned").mkdir()
    with pytest.raises(OutputError, match="is not overwritten"), claimed(tmp_path, **NAMES):
        pytest.fail("it was claimed")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_what_a_failed_recovery_made_goes_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "out", **NAMES):
        (tmp_path / "out" / "checkpoint").mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_recovery_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / MARK).touch()
    (tmp_path / "checkpoint" / "model").mkdir(parents=True)
    with claimed(tmp_path, **NAMES):
        assert not (tmp_path / "checkpoint").exists()
        (tmp_path / "recovery.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["recovery.json"]


def test_what_is_kept_stays_until_a_recovery_ends(tmp_path: Path) -> None:
    names = {**NAMES, "kept": ("checkpoint", ".so-far", ".base")}
    for error in (KeyboardInterrupt, OutputError):
        with pytest.raises(error), claimed(tmp_path / "out", **names):
            for folder in ("checkpoint", "pruned", ".base"):
                (tmp_path / "out" / folder).mkdir(exist_ok=True)
            (tmp_path / "out" / ".so-far").touch()
            raise error("stopped")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {MARK, "checkpoint", ".so-far", ".base"}
    with claimed(tmp_path / "out", **names):
        (tmp_path / "out" / "recovery.json").touch()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint", "recovery.json"]
    with pytest.raises(OutputError, match="is not overwritten"), claimed(tmp_path / "out", **names):
        pytest.fail("it was claimed")
