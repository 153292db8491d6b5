"""`gatenorm verify`: whatever is touched is found, and a manifest that is sealed anew does not pass for the graph's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_cases import TOUCHES, toy_bundle

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.bundling import VerifyRequest, open_bundle, verify_bundle
from gatenorm_export.bundling.opening import sealed
from gatenorm_export.bundling.probe import Asked, difference_of, judged
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, TamperedError
from gatenorm_export.records import BundleManifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def checks_of(folder: Path, **options: Any) -> dict[str, tuple[bool | None, str]]:
    found = verify_bundle(VerifyRequest(folder, **options))
    return {check.check: (check.passed, check.finding) for check in found.checks}


def test_a_good_bundle_passes_every_check(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seal = open_bundle(bundle).manifest.seal
    assert main(["verify", str(bundle), "--seal", seal.upper(), "--json", "-q"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert [(check["check"], check["passed"]) for check in result["checks"]] == [
        ("manifest", True), ("files", True), ("signature", True), ("load", True), ("probe", True),
    ]  # fmt: skip
    assert result["touched"] == []
    assert main(["verify", str(bundle), "--files-only", "-q"]) == 0
    assert "signature" not in capfd.readouterr().out


@pytest.mark.parametrize("what", TOUCHES)
def test_whatever_is_touched_has_its_own_exit_code(what: str, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TOUCHES[what](bundle)
    assert main(["verify", str(bundle), "-q"]) == ExitCode.TAMPERED
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    with pytest.raises(TamperedError):
        open_bundle(bundle)


def test_every_touched_file_is_named(bundle: Path) -> None:
    (bundle / "config.json").write_text("{}")
    (bundle / "tokenizer.json").unlink()
    (bundle / "new.bin").write_bytes(b"")
    found = verify_bundle(VerifyRequest(bundle))
    assert set(found.touched) == {"config.json was changed", "tokenizer.json is missing", "new.bin was added"}
    # What was touched is not loaded.
    assert [check.check for check in found.checks] == ["manifest", "files"]
    assert not found.intact


def test_another_seal_is_another_bundle(bundle: Path) -> None:
    assert checks_of(bundle, seal="0" * 64)["manifest"][0] is False
    assert main(["verify", str(bundle), "--seal", "0" * 64, "-q"]) == ExitCode.TAMPERED


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and seal it anew, as whoever forges a bundle would."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    for file in content["files"]:
        place = folder / file["name"]
        file.update(bytes=place.stat().st_size, sha256=sha256_of(place))
    path.write_bytes(sealed(BundleManifest.model_validate(content))[1])


def assert_found_when_forged(folder: Path, change: Callable[[dict[str, Any]], None], finding: str) -> None:
    reseal(folder, change)
    passed, found = checks_of(folder)["signature"]
    assert passed is False
    assert finding in found
    assert main(["verify", str(folder), "-q"]) == ExitCode.TAMPERED


def swap_caches(content: dict[str, Any]) -> None:
    caches = content["decoding"]["caches"]
    caches[0]["present"], caches[2]["present"] = caches[2]["present"], caches[0]["present"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (swap_caches, "cache tensors are not the graph's"),
        (lambda content: content["decoding"]["caches"][0].update(shape=["b", "p", 13]), "cache tensors are not"),
        (lambda content: content.update(dropped=[0]), "kept layers are not"),
        (lambda content: content["graph"]["outputs"][0].update(dtype="float16"), "outputs are not"),
        (lambda content: content["decoding"].update(vocab_size=10**12), "vocabulary of 1,000,000,000,000 is not"),
        (
            lambda content: content["decoding"].update(max_positions=10**15),
            "longest context of 1,000,000,000,000,000 is not",
        ),
    ],
)
def test_a_forged_manifest_is_held_against_the_graph(
    change: Callable[[dict[str, Any]], None], finding: str, bundle: Path
) -> None:
    assert_found_when_forged(bundle, change, finding)


def test_a_bundle_that_answers_otherwise_is_unfaithful(bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["probe"]["answer"][3] = (content["probe"]["answer"][3] + 1) % 11

    reseal(bundle, change)
    passed, finding = checks_of(bundle)["probe"]
    assert passed is False
    assert "answer 4 is" in finding
    assert main(["verify", str(bundle), "-q"]) == ExitCode.UNFAITHFUL


def test_a_forged_description_for_genai_is_found(bundle: Path) -> None:
    (bundle / "genai_config.json").write_text(
        json.dumps({"model": {"decoder": {"session_options": {"custom_ops_library": "/tmp/evil.so"}}}})
    )

    def add(content: dict[str, Any]) -> None:
        content["files"].append({"name": "genai_config.json", "bytes": 0, "sha256": "0" * 64, "role": "config"})

    reseal(bundle, add)
    assert "custom_ops_library" in checks_of(bundle)["load"][1]
    (bundle / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "../other.onnx"}}}))
    reseal(bundle, lambda content: None)
    assert "names ../other.onnx" in checks_of(bundle)["load"][1]
    assert main(["verify", str(bundle), "-q"]) == ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["files"][0].update(name="../config.json"),
        lambda content: content["files"][0].update(name="/etc/passwd"),
        lambda content: content["files"].append(content["files"][0]),
        lambda content: content["graph"].update(sha256="0" * 64),
        lambda content: content["decoding"]["caches"][0].update(length_axis=9),
        lambda content: content["probe"].update(prompt=[0] * 100_000),
        lambda content: content["probe"].update(prompt=[2**70]),
        lambda content: content["probe"].update(answer=[]),
        lambda content: content.update(schema=0),
        lambda content: content.update(name="../../etc"),
        lambda content: content.update(n_layers=10**12),
    ],
)
def test_a_hostile_manifest_is_no_manifest(change: Callable[[dict[str, Any]], None], bundle: Path) -> None:
    rewrite(bundle, change)
    with pytest.raises(InputError, match="not a BundleManifest record"):
        open_bundle(bundle)


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest in whatever way, and seal it rightly, so that only its content is wrong."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    content["seal"] = "0" * 64
    text = json.dumps(content, indent=2)
    path.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1))


def test_a_bundle_of_a_newer_gatenorm_asks_for_an_upgrade(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite(bundle, lambda content: content.update(schema=99, novel={"field": 1}))
    assert main(["verify", str(bundle), "-q"]) == ExitCode.BAD_INPUT
    said = capfd.readouterr().err
    assert "is of schema 99, and this gatenorm reads 1: a newer one wrote it; pip install --upgrade gatenorm" in said


def test_what_is_no_bundle_is_an_input_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "manifest.json").write_text('{"kind": "pruned"}')
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    for folder in (tmp_path / "absent", tmp_path / "graph", tmp_path / "checkpoint"):
        assert main(["verify", str(folder), "-q"]) == ExitCode.BAD_INPUT
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert "`gatenorm bundle` makes one" in said


def test_options_that_mean_nothing_are_wrong_usage(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options, said in ((["--files-only", "--model", "smollm2"], "leave one out"), (["--seal", "3f2a"], "64 hexa")):
        assert main(["verify", str(bundle), "-q", *options]) == ExitCode.USAGE
        assert said in capfd.readouterr().err


def test_a_wrong_answer_never_passes() -> None:
    values = np.linspace(-1.0, 1.0, 12).reshape(3, 4)
    rows = tuple(values / 2.0)

    def verdict(other: np.ndarray, answer: tuple[int, ...]) -> bool:
        asked = Asked((), answer, rows, difference_of(values, other), "in another way")
        return judged(asked, 1e-3).passed

    assert verdict(values, (3, 3, 3))
    assert verdict(values + 1e-4, (3, 3, 3))
    assert not verdict(values + 1e-2, (3, 3, 3))
    assert not verdict(values, (3, 2, 3))
    assert not verdict(values, (3, 3))
    assert not verdict(values, (3, 3, 99))
    assert not verdict(np.full_like(values, np.nan), (3, 3, 3))
