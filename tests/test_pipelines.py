"""The sample pipelines and the Dockerfile: what the services' schemas and linters take, and whose commands run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_zoo import row

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
GITHUB, GITLAB = (EXAMPLES / "pipelines" / name for name in ("github-actions.yml", "gitlab-ci.yml"))
DOCKERFILE = EXAMPLES / "docker" / "Dockerfile"
BIN = Path(sys.executable).parent


def bash(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the services do: it stops at the first command that fails."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **variables}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def github_steps() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = yaml.safe_load(GITHUB.read_text())["jobs"]["prune"]["steps"]
    return [step for step in steps if "run" in step and step["name"] != "Install"]


def gitlab_scripts() -> list[str]:
    pipeline = yaml.safe_load(GITLAB.read_text())
    return ["\n".join(pipeline[job]["script"]) for job in ("prune", "triton")]


@pytest.mark.parametrize(
    "arguments",
    [("vendor.github-workflows", GITHUB), ("vendor.gitlab-ci", "--data-transform", "gitlab-ci", GITLAB)],
    ids=["github", "gitlab"],
)
def test_the_samples_fit_the_schemas_of_the_services(arguments: tuple[object, ...]) -> None:
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_is_what_its_linter_recommends() -> None:
    done = subprocess.run([str(BIN / "hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_copies_what_the_build_needs() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert {"pyproject.toml", "README.md", "gatenorm_export", "graph_passes"} == {*" ".join(copied).split()}
    assert all((ROOT / name).exists() for name in " ".join(copied).split())


def test_the_samples_name_what_they_keep() -> None:
    """Whatever a sample keeps as an artifact, its commands write."""
    written = {"out/", "bundle/", "models/", ".gatenorm-cache/", ".pip-cache/"}
    written |= {"out/report.html", "out/report.json", *re.findall(r"> (\S+\.json)", GITLAB.read_text())}
    pipeline = yaml.safe_load(GITLAB.read_text())
    for job in ("prune", "triton"):
        assert {*pipeline[job]["artifacts"]["paths"]} <= written


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a tiny model, in which the commands of the sample for GitHub have run."""
    folder = tmp_path_factory.mktemp("project")
    row("llama-gqa").save(folder / "model")
    summary = folder / "summary.md"
    for step in github_steps():
        done = bash(step["run"], folder, **variables(folder), GITHUB_STEP_SUMMARY=str(summary))
        assert (done.returncode, done.stdout) == (0, ""), f"{step['name']}: {done.stderr}"
        assert done.stderr == "", step["name"]
    return folder


def variables(folder: Path) -> dict[str, str]:
    """The variables at the top of a sample, for the tiny model; it needs no engine to be a bundle."""
    options = "--flavour none --no-latency --max-text-tokens 128"
    cache = str(folder / ".gatenorm-cache")
    return {"MODEL": "model", "DROP": "1", "MAX_PPL_RATIO": "50", "OPTIONS": options, "GATENORM_CACHE": cache}


def test_the_commands_for_github_run(project: Path) -> None:
    run = json.loads((project / "run.json").read_text())
    assert run["faithfulness"]["passed"] is True
    assert json.loads((project / "doctor.json").read_text())["asked_ready"] is True
    assert json.loads((project / "verify.json").read_text())["touched"] == []
    assert "faithfulness" in (project / "summary.md").read_text().lower()
    assert list((project / "models").glob("*/config.pbtxt"))


def test_the_commands_for_gitlab_run_and_reuse_what_is_there(project: Path) -> None:
    for name in ("bundle", "models"):
        shutil.rmtree(project / name)
    for script in gitlab_scripts():
        done = bash(script, project, **variables(project))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "compare" in json.loads((project / "run.json").read_text())["reused"]
    assert json.loads((project / "verify.json").read_text())["touched"] == []


def test_a_missed_limit_stops_the_sample_without_a_bundle(project: Path) -> None:
    shutil.rmtree(project / "bundle", ignore_errors=True)
    step = next(step for step in github_steps() if "bundle/" in step["run"] and "gatenorm run" in step["run"])
    done = bash(step["run"], project, **{**variables(project), "MAX_PPL_RATIO": "0.5"})
    assert done.returncode == 11, done.stderr
    assert not (project / "bundle").exists()
