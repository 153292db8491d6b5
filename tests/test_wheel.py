"""The wheel as a stranger gets it: what is in it, and what it does in an empty environment without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_locking import model as checkpoint
from test_pipelines import DOCKERFILE

from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode

ROOT = Path(__file__).parent.parent
_ = checkpoint
Gatenorm = Callable[..., subprocess.CompletedProcess[str]]


def sources() -> list[str]:
    """The files that the wheel is made of: those of the packages which git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "gatenorm_export", "graph_passes"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built outside this folder, in which building would leave traces."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*sources(), "pyproject.toml", "README.md"):
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "src" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "src")], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {*sources()}


@pytest.fixture(scope="module")
def gatenorm(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Gatenorm:
    """gatenorm of an empty environment, into which the Dockerfile's command has put the wheel alone."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "EXTRAS": "",
        "TORCH": "",
    }
    for name in ("PIP_CONFIG_FILE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "SSL_CERT_FILE", "PIP_CERT"):
        environment |= {name: os.environ[name]} if name in os.environ else {}
    install = next(line for line in _run_lines() if "/wheels/gatenorm-" in line).replace("/wheels/", f"{wheel.parent}/")
    done = subprocess.run(["bash", "-ec", install], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(programs / "gatenorm"), *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    assert not list((folder / "venv").glob("lib/python*/site-packages/torch"))
    return run


def _run_lines() -> list[str]:
    """The RUN instructions of the Dockerfile, each in one line."""
    joined = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.removeprefix("RUN ") for line in joined.splitlines() if line.startswith("RUN ")]


@pytest.mark.real
def test_an_empty_environment_scores_plans_and_reports_what_it_lacks(
    gatenorm: Gatenorm, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gatenorm("--version").stdout.startswith("gatenorm ")
    # It asks every verb for its options.
    completion = gatenorm("completion", "bash")
    assert (completion.returncode, completion.stderr) == (0, "")
    assert "Prune attention" in gatenorm("--help").stdout
    scored = gatenorm("score", checkpoint, "--drop", "1", "-o", tmp_path / "scores.json", "--json", "--quiet")
    assert (scored.returncode, scored.stderr) == (0, "")
    main(["score", str(checkpoint), "--drop", "1", "--json", "--quiet"])
    assert json.loads(scored.stdout)["layers"] == json.loads(capsys.readouterr().out)["layers"]
    planned = gatenorm("plan", tmp_path / "scores.json", "--drop", "1", "-o", tmp_path / "plan.json", "--json")
    assert len(json.loads(planned.stdout)["drop"]) == 1
    refused = gatenorm("export", checkpoint, "-o", tmp_path / "base")
    assert refused.returncode == ExitCode.MISSING_PART
    assert 'pip install "gatenorm[export,ort]"' in refused.stderr
    assert not (tmp_path / "base").exists()
    report = json.loads(gatenorm("doctor", "--json", "--quiet").stdout)
    ready = {stage["name"] for stage in report["stages"] if stage["ready"]}
    assert {"score", "plan", "report"} <= ready <= {"score", "plan", "report", "cpp"}
    assert gatenorm("doctor", "--stage", "prune", "--quiet").returncode == ExitCode.MISSING_PART
