"""Writes appear whole or not at all; a run's ledger reuses exactly what has not changed."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from gatenorm_export.artifacts import atomic_file, sha256_of, staged_folder, write_text
from gatenorm_export.errors import InputError, OutputError
from gatenorm_export.ledger import Ledger
from gatenorm_export.progress import Quiet
from gatenorm_export.records import FileDigest, ModelSpec, PrunePlan, RunManifest, TowerSpec


def a_model(n_layers: int = 4) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        path="/nowhere/tiny",
        source="safetensors",
        architecture="LlamaForCausalLM",
        towers=(
            TowerSpec(n_layers=n_layers, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, query_key_digest="7c" * 16),
        ),
        files=(FileDigest(name="model.safetensors", bytes=3, sha256="ab"),),
    )


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    with pytest.raises(OutputError, match=r"result\.json: cannot be written"), atomic_file(target):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_text("")
    write_text(atomic, "")
    assert stat.S_IMODE(atomic.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "file" / "result.json", "x")
    with pytest.raises(OutputError, match="a file is in the way"), staged_folder(tmp_path / "file"):
        pass


def test_a_staged_folder_keeps_what_else_lies_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="stop"), staged_folder(tmp_path) as staging:
        (staging / "model.onnx").write_text("half")
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with staged_folder(tmp_path) as staging:
        (staging / "model.onnx").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "model.onnx"]


def test_records_survive_the_way_through_json_and_refuse_others(tmp_path: Path) -> None:
    plan = PrunePlan(
        model_name="tiny",
        model_digest=a_model().query_key_digest,
        scores_sha256="cd",
        n_layers=4,
        policy="drop 1",
        protect=(),
        drop=(3,),
    )
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    (tmp_path / "plan.json").write_text(plan.to_json().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(InputError, match=r"plan\.json: is of schema 99, .* pip install --upgrade gatenorm"):
        PrunePlan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(plan.to_json().replace('"schema": 1', '"schema": "1"'))
    with pytest.raises(InputError, match=r"plan\.json: not a PrunePlan record of schema 1: schema"):
        PrunePlan.load(tmp_path / "plan.json")
    with pytest.raises(InputError, match="cannot be read"):
        PrunePlan.load(tmp_path / "absent.json")


class Book:
    """A ledger over one folder whose only stage writes its number of calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0

    def run(self, decides: dict[str, int], *, force: bool = False, parent: str = "p") -> bool:
        def produce() -> Iterable[Path]:
            self.calls += 1
            write_text(self.folder / "made.txt", f"made {self.calls}")
            return [self.folder / "made.txt"]

        ledger = Ledger(self.folder, a_model(), "gatenorm run", force=force, progress=Quiet())
        return ledger.stage("make", decides, [parent], produce)


def test_a_stage_runs_again_only_when_something_changed(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert book.run({"n": 1})
    assert not book.run({"n": 1})
    assert book.run({"n": 2}), "another parameter"
    assert book.run({"n": 2}, parent="q"), "another input"
    assert book.run({"n": 2}, parent="q", force=True), "on request"
    (tmp_path / "made.txt").write_text("edited")
    assert book.run({"n": 2}, parent="q"), "an edited result"
    (tmp_path / "made.txt").unlink()
    assert book.run({"n": 2}, parent="q"), "a lost result"
    assert book.calls == 6


def test_the_manifest_names_every_artifact_with_digest_and_parents(tmp_path: Path) -> None:
    Book(tmp_path).run({"n": 1}, parent="parent-digest")
    manifest = RunManifest.load(tmp_path / "manifest.json")
    (artifact,) = manifest.stages["make"].artifacts
    assert artifact.path == "made.txt"
    assert artifact.sha256 == sha256_of(tmp_path / "made.txt")
    assert artifact.parents == ("parent-digest",)


def test_a_folder_with_somebody_elses_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(InputError, match="not the manifest of a run"):
        Book(tmp_path).run({"n": 1})
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web app"}'
