"""An interrupted `gatenorm compare`: given again, it goes on behind the stages that were measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calibration_cases import repair_graph
from test_comparing import WORDS

from gatenorm_export.cli.main import main
from gatenorm_export.comparing import compare, latency, quality
from gatenorm_export.errors import ExitCode

STAGES = (
    (compare, "check_faithfulness"),
    (quality, "decoder_quality"),
    (latency, "decoder_latency"),
    (compare, "with_roofline"),
    (compare, "measure_latency"),
)
NAMES = ("faithfulness", "quality", "latency", "roofline", "latency of the repair")


@pytest.fixture(scope="module")
def graphs(exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, the repaired graph of two layers, and a text."""
    folder = tmp_path_factory.mktemp("again")
    _, base, _ = exported("llama-gqa")
    repair_graph(base, folder / "repaired", "linear:4", (1, 2))
    (folder / "text.txt").write_text(WORDS.content)
    return base, folder / "repaired", folder / "text.txt"


class Stages:
    """The stages as they are, which count their calls and can be stopped as Ctrl-C stops them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, places: tuple[tuple[Any, str], ...] = STAGES) -> None:
        self.done: dict[str, list[Any]] = {name: [] for _, name in places}
        self.stop: str | None = None
        for module, name in places:
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name: str, stage: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if name == self.stop:
                raise KeyboardInterrupt
            self.done[name].append(stage(*arguments, **named))
            return self.done[name][-1]

        return run


def run(graphs: tuple[Path, Path, Path], out: Path, *options: object) -> int:
    base, pruned, text = graphs
    words = ["compare", base, pruned, "--text", text, "--max-text-tokens", 100, "-o", out, *options]
    return main([str(word) for word in words])


def test_an_interrupted_comparison_goes_on_behind_what_was_measured(
    graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(graphs, tmp_path / "at-once", "--no-latency", "-q") == 0
    stages = Stages(monkeypatch)
    out = tmp_path / "out"
    for number, (_, name) in enumerate(STAGES):
        stages.stop = name
        capfd.readouterr()
        assert run(graphs, out) == ExitCode.INTERRUPTED
        said = " ".join(capfd.readouterr().err.split())
        assert (f"{', '.join(NAMES[: number - 1])}: measured before; going on" in said) == (number > 1)
        assert not (out / "compare.json").exists()
    stages.stop = None
    # Limits are no measurement: they may change, and are held against what was measured.
    assert run(graphs, out, "--max-kl", 1e-9) == ExitCode.THRESHOLD
    assert {name: len(results) for name, results in stages.done.items()} == {name: 1 for _, name in STAGES}
    report, whole = (json.loads((folder / "compare.json").read_text()) for folder in (out, tmp_path / "at-once"))
    assert report["latency"] == json.loads(stages.done["with_roofline"][0].model_dump_json())
    assert report["repair_latency"] == json.loads(stages.done["measure_latency"][0].model_dump_json())
    assert report["thresholds"][0]["passed"] is False
    for part in ("faithfulness", "quality", "base_sizes", "pruned_sizes", "dropped"):
        assert report[part] == whole[part]
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "compare.md"]


def test_another_comparison_finds_nothing_of_an_interrupted_one(
    graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base, pruned, text = graphs
    other = tmp_path / "other.txt"
    other.write_text(f"w9 {text.read_text()}")
    repair_graph(base, tmp_path / "other", "linear:4", (1, 3))
    stages = Stages(monkeypatch)
    for changed, options in (
        ((base, pruned, other), []),
        ((base, pruned, text), ["--max-text-tokens", 99]),
        ((base, tmp_path / "other", text), []),
    ):
        stages.stop = "decoder_latency"
        assert run(graphs, tmp_path / "proof.json") == ExitCode.INTERRUPTED
        assert (tmp_path / ".proof.json.compare-so-far").exists()
        capfd.readouterr()
        stages.stop, before = None, len(stages.done["decoder_quality"])
        assert run(changed, tmp_path / "proof.json", *options) == 0
        assert "measured before" not in capfd.readouterr().err
        assert len(stages.done["decoder_quality"]) == before + 1
        assert not (tmp_path / ".proof.json.compare-so-far").exists()


def test_an_interrupted_run_goes_on_within_its_comparison(
    exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spec, _, _ = exported("llama-gqa")
    (tmp_path / "text.txt").write_text(WORDS.content)
    words = ["run", spec.path, "--drop", 1, "--out", tmp_path / "out", "--flavour", "none"]
    words += ["--text", tmp_path / "text.txt", "--max-text-tokens", 100]
    stages = Stages(monkeypatch)

    def go(*options: str) -> int:
        return main([str(word) for word in (*words, *options)])

    stages.stop = "decoder_latency"
    assert go() == ExitCode.INTERRUPTED
    kept = tmp_path / "out" / ".compare-so-far"
    assert kept.exists()
    stages.stop = "with_roofline"
    assert go() == ExitCode.INTERRUPTED
    assert "faithfulness, quality: measured before; going on" in " ".join(capfd.readouterr().err.split())
    assert len(stages.done["decoder_quality"]) == 1
    stages.stop = None
    # What is to be done anew is measured anew.
    assert go("--force") == 0
    assert len(stages.done["decoder_quality"]) == 2
    assert not kept.exists()
