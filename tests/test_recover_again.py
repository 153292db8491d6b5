"""An interrupted `gatenorm recover`: given again it goes on, and ends in the bits of one that was never interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recovering import LAYERS, WINDOW, folder, request, student_of, windows_of

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode
from gatenorm_export.progress import Quiet
from gatenorm_export.recovering import learning, recover, so_far, training
from gatenorm_export.recovering.claiming import MARK
from gatenorm_export.recovering.outcome import Training
from gatenorm_export.recovering.so_far import TrainingFile
from gatenorm_export.recovering.student import Student
from gatenorm_export.sources import resolve_model

__all__ = ["folder"]

HIDDEN = {MARK, recover._KEPT, recover._STATE, recover._BASE}


class Steps:
    """Training steps that are counted, and stopped behind so many as Ctrl-C stops them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.stop = 0, 10**9
        step = training._step

        def counted(*arguments: Any) -> float:
            if self.made == self.stop:
                raise KeyboardInterrupt
            self.made += 1
            return step(*arguments)

        monkeypatch.setattr(training, "_step", counted)


class Heard(Quiet):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr(so_far, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(so_far, "_WRITING_SHARE", 0)
    return Steps(monkeypatch)


def train(
    folder: Path, file: Path | None, key: str = "key", progress: Heard | None = None, **settings: Any
) -> tuple[Student, Training]:
    spec = resolve_model(str(folder / "model"))
    asked = request(folder, **{"learning_rate": 5e-3, **settings})
    student = student_of(spec, asked.seed)
    kept = TrainingFile(file, key) if file is not None else None
    done = training.train(student, windows_of(folder, spec), asked, file=kept, progress=progress or Quiet())
    return student, done


def same(first: Student, second: Student) -> bool:
    return all(torch.equal(*pair) for pair in zip(first.state(), second.state(), strict=True))


@pytest.mark.parametrize("loss", ["distill", "text"])
@pytest.mark.parametrize("stops", [(3, 14), (9,)])
def test_training_that_goes_on_ends_in_the_same_bits(
    folder: Path, tmp_path: Path, steps: Steps, loss: str, stops: tuple[int, ...]
) -> None:
    whole, at_once = train(folder, None, loss=loss, steps=20)
    file = tmp_path / "state"
    steps.made = 0
    for steps.stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(folder, file, loss=loss, steps=20)
    steps.stop = 10**9
    heard = Heard()
    student, done = train(folder, file, loss=loss, steps=20, progress=heard)
    assert steps.made == 20
    assert f"{stops[-1]} of 20 steps were made before; going on" in heard.lines
    assert same(student, whole)
    assert (done.points, done.best_step, done.steps) == (at_once.points, at_once.best_step, at_once.steps)
    assert done.seconds > done.earlier_seconds > 0
    # At its end it is saved too, so that what comes behind it may be interrupted.
    again, nothing = train(folder, file, loss=loss, steps=20)
    assert steps.made == 20
    assert same(again, whole)
    assert nothing.points == at_once.points


def test_the_best_weights_are_those_of_before_the_interruption(folder: Path, tmp_path: Path, steps: Steps) -> None:
    """A rate that does harm: the pruned model itself is kept, and has to be there behind the interruption."""
    steps.stop = 5
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "state", steps=8, learning_rate=30.0)
    steps.stop = 10**9
    student, done = train(folder, tmp_path / "state", steps=8, learning_rate=30.0)
    assert done.best_step == 0
    assert same(student, student_of(resolve_model(str(folder / "model"))))


def test_what_was_trained_since_it_was_saved_is_trained_again(
    folder: Path, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train(folder, None, steps=12)
    monkeypatch.setattr(TrainingFile, "due", property(lambda self: steps.made % 4 == 0))
    steps.made, steps.stop = 0, 7
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "state", steps=12)
    steps.stop = 10**9
    student, _ = train(folder, tmp_path / "state", steps=12)
    assert steps.made == 7 + 8
    assert same(student, whole)


def test_a_run_of_minutes_keeps_its_number_of_steps(
    folder: Path, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_steps_in", lambda seconds, a_step: 11)
    steps.stop = 8
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "state", steps=None, minutes=1.0)
    steps.stop = 10**9
    monkeypatch.setattr(training, "_steps_in", lambda seconds, a_step: pytest.fail("settled again"))
    student, done = train(folder, tmp_path / "state", steps=None, minutes=1.0)
    repeated, at_once = train(folder, None, steps=11)
    assert done.steps == 11
    assert done.points == at_once.points
    assert same(student, repeated)


def test_a_state_of_another_training_or_a_damaged_one_is_not_used(folder: Path, tmp_path: Path, steps: Steps) -> None:
    whole, _ = train(folder, None, steps=6)
    file, heard = tmp_path / "state", Heard()
    for spoil in (lambda: None, lambda: file.write_bytes(file.read_bytes()[:-9]), lambda: file.write_bytes(b"")):
        steps.made, steps.stop = 0, 4
        with pytest.raises(KeyboardInterrupt):
            train(folder, file, "another", steps=6)
        spoil()
        steps.made, steps.stop = 0, 10**9
        student, _ = train(folder, file, steps=6, progress=heard)
        assert steps.made == 6
        assert same(student, whole)
        file.unlink()
    assert sum("of other inputs or options" in line for line in heard.lines) == 1


def run(folder: Path, out: Path, *options: object) -> int:
    words = ["recover", folder / "model", "--plan", folder / "plan.json", "--text", folder / "text.txt", "-o", out]
    words += ["--eval-text", folder / "other.txt", "--window", WINDOW, "--batch", 4, "--steps", 24]
    return main([str(word) for word in [*words, "--learning-rate", "5e-3", *options]])


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, log: list[str], stopped: list[str]) -> None:
    """Put a stage in its place that notes its calls, or is interrupted before it begins."""
    stage = getattr(module, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        if name in stopped:
            raise KeyboardInterrupt
        log.append(name)
        return stage(*arguments, **named)

    monkeypatch.setattr(module, name, noted)


def test_the_verb_goes_on_behind_every_stage(
    folder: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from gatenorm_export.recovering import judging

    out = folder / "again"
    log: list[str] = []
    stopped: list[str] = []
    for module, name in (
        (judging, "judge"),
        (learning, "_save"),
        (recover, "export_model"),
        (recover, "prune_graph"),
        (recover, "check_faithfulness"),
    ):
        counted(monkeypatch, module, name, log, stopped)
    steps.stop = 10
    assert run(folder, out) == ExitCode.INTERRUPTED
    assert {path.name for path in out.iterdir()} == {MARK, recover._STATE}
    steps.stop = 10**9
    for stage in ("judge", "_save", "export_model", "prune_graph", "check_faithfulness"):
        stopped[:] = [stage]
        assert run(folder, out) == ExitCode.INTERRUPTED
        assert {path.name for path in out.iterdir()} <= HIDDEN | {"checkpoint"}
    stopped.clear()
    capfd.readouterr()
    assert run(folder, out) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "trained and judged before; going on" in said
    assert "exported before; going on" in said
    assert steps.made == 24
    assert log.count("judge") == 2
    assert (log.count("_save"), log.count("export_model")) == (1, 1)
    assert {path.name for path in out.iterdir()} == {"checkpoint", "pruned", "plan.json", "recovery.json"}
    for file in ("checkpoint/model.safetensors", "pruned/model.onnx"):
        assert sha256_of(out / file) == sha256_of(folder / "out" / file), file
    report, whole = (json.loads((place / "recovery.json").read_text()) for place in (out, folder / "out"))
    differ = {name for name in whole if report[name] != whole[name]}
    assert differ == {"recovered_model", "train_seconds", "total_seconds", "command"}
    assert report["total_seconds"] > report["train_seconds"] > 0
    assert run(folder, out) == ExitCode.OUTPUT
    assert "is not overwritten" in capfd.readouterr().err


def test_another_recovery_finds_nothing_of_an_interrupted_one(
    folder: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped behind the export, and begun again with other options in the same folder."""
    out = folder / "other"
    with monkeypatch.context() as patch:
        patch.setattr(recover, "prune_graph", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(folder, out, "--steps", 6) == ExitCode.INTERRUPTED
    assert {path.name for path in out.iterdir()} == HIDDEN | {"checkpoint"}
    steps.made = 0
    capfd.readouterr()
    assert run(folder, out, "--steps", 7) == 0
    assert steps.made == 7
    said = " ".join(capfd.readouterr().err.split())
    assert "of other inputs or options; begun anew" in said
    assert "going on" not in said
    assert {path.name for path in out.iterdir()} == {"checkpoint", "pruned", "plan.json", "recovery.json"}
    config = json.loads((out / "checkpoint" / "config.json").read_text())
    assert config["gatenorm"]["trained_without_attention_of_layers"] == list(LAYERS)


def test_a_process_that_was_killed_left_nothing_in_the_way(folder: Path, steps: Steps) -> None:
    """What a kill leaves: the mark, a state, half a checkpoint, half a graph, and the folder that was being filled."""
    out = folder / "killed"
    steps.stop = 3
    assert run(folder, out, "--steps", 4, "-q") == ExitCode.INTERRUPTED
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "config.json").write_text("{")
    for name in ("pruned", recover._BASE, ".gatenorm.abcdefgh.part"):
        (out / name).mkdir()
    (out / ".gatenorm.lock").write_text("{}")
    steps.made, steps.stop = 0, 10**9
    assert run(folder, out, "--steps", 4, "-q") == 0
    assert steps.made == 1
    assert {path.name for path in out.iterdir()} == {"checkpoint", "pruned", "plan.json", "recovery.json"}
