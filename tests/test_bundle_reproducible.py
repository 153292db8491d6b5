"""Same inputs, same bytes: two runs of a model in two places, and what a bundle says of bytes that may differ."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_cases import files_of
from model_zoo import row
from report_factory import a_latency

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.bundling import BundleRequest, make_bundle, open_bundle
from gatenorm_export.bundling.public import MEASURED, public_command
from gatenorm_export.records import BundleManifest, ComparisonReport, LayerScores, ModelSpec, PrunedGraph, PrunePlan
from gatenorm_export.sources import resolve_model

OPTIONS = (
    "--drop",
    "1",
    "--guard",
    "--repair",
    "linear",
    "--flavour",
    "none",
    "--no-latency",
    "--no-shipped-text",
    "-q",
)
TEXT = "The harbour master kept two clocks, one for the tide and one for the town. " * 200


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Two runs of one checkpoint and their bundles: other folders, other ways to name them, other hash seeds."""
    begun = []
    for name, checkpoint, out in (("one", "model", "out"), ("two", "deep/er/model", "there/run-2")):
        place = tmp_path_factory.mktemp(name)
        row("llama-gqa").save(place / checkpoint)
        (place / "text.txt").write_text(TEXT)
        command = ["run", checkpoint, *OPTIONS, "--calibration-text", "text.txt", "--out", out, "--bundle", "bundle"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gatenorm_export.cli.main", *command],
            cwd=place,
            env=os.environ | {"PYTHONHASHSEED": str(len(begun) + 1)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append((process, place / out, place / "bundle"))
    for process, *_ in begun:
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    return [(run, bundle) for _, run, bundle in begun]


def test_two_runs_in_two_places_give_the_same_bytes(runs: list[tuple[Path, Path]]) -> None:
    first, second = (files_of(bundle) for _, bundle in runs)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert {"repair.safetensors", "records/plan.json", "report/report.html", "report/scores.svg"} <= first.keys()
    assert not any(file.not_reproducible for file in open_bundle(runs[0][1]).manifest.files)
    for content in first.values():
        assert str(runs[0][0].parent).encode() not in content


def test_digests_of_records_are_those_in_the_bundle(runs: list[tuple[Path, Path]]) -> None:
    run, bundle = runs[1]
    records, manifest = bundle / "records", open_bundle(bundle).manifest
    plan, graph = PrunePlan.load(records / "plan.json"), PrunedGraph.load(records / "pruned.json")
    assert plan.scores_sha256 == sha256_of(records / "scores.json") != sha256_of(run / "scores.json")
    assert graph.plan_sha256 == manifest.plan_sha256 == sha256_of(records / "plan.json")
    scores = LayerScores.load(records / "scores.json").model
    assert [(spec.name, spec.path) for spec in (scores, graph.model) if spec is not None] == [("model", "model")] * 2
    assert scores.digest == LayerScores.load(run / "scores.json").model.digest


def test_of_runs_that_were_timed_only_what_tells_speeds_differs(runs: list[tuple[Path, Path]], tmp_path: Path) -> None:
    measured = a_latency()
    manifests: list[BundleManifest] = []
    for index, (run, _) in enumerate(runs):
        copy = tmp_path / f"run-{index}"
        shutil.copytree(run, copy)
        latency = measured.model_copy(update={"prefill_speedup": 1.25 + index})
        comparison = ComparisonReport.load(copy / "compare.json").model_copy(update={"latency": latency})
        comparison.save(copy / "compare.json")
        manifests.append(make_bundle(BundleRequest(copy, tmp_path / f"bundle-{index}")))
        # The same run again gives the same bytes throughout, speeds included.
        make_bundle(BundleRequest(copy, tmp_path / f"again-{index}"))
        assert files_of(tmp_path / f"bundle-{index}") == files_of(tmp_path / f"again-{index}")
    first, second = (files_of(tmp_path / f"bundle-{index}") for index in range(2))
    differing = {"records/compare.json", "report/report.json", "report/report.md", "report/report.html"}
    assert {name for name in first if first[name] != second.get(name)} == {*differing, "manifest.json"}
    assert {file.name: file.not_reproducible for file in manifests[0].files if file.not_reproducible} == dict.fromkeys(
        differing, MEASURED
    )
    assert manifests[0].reproducible_sha256 == manifests[1].reproducible_sha256 is not None
    assert manifests[0].seal != manifests[1].seal


def test_a_bundle_of_a_bundle_says_the_same(runs: list[tuple[Path, Path]], tmp_path: Path) -> None:
    make_bundle(BundleRequest(runs[0][1], tmp_path / "again"))
    assert files_of(tmp_path / "again") == files_of(runs[0][1])


def test_another_name_has_another_digest(runs: list[tuple[Path, Path]], tmp_path: Path) -> None:
    manifest = make_bundle(BundleRequest(runs[0][0], tmp_path / "named", name="other"))
    assert manifest.reproducible_sha256 != open_bundle(runs[0][1]).manifest.reproducible_sha256


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("gatenorm run here/model --drop 1 --out a/b --json -q", "gatenorm run model --drop 1"),
        ("gatenorm run /home/me/model/ --text=/data/t.txt --out=x --bundle y", "gatenorm run model --text=t.txt"),
        ("gatenorm run m --layers 1-2,4 -o 'my runs/x' --wait 5", "gatenorm run m --layers 1-2,4"),
        ("gatenorm run mother's -o x", "gatenorm run 'mother'\"'\"'s'"),
        ("gatenorm run . --drop 1 --out .", "gatenorm run . --drop 1"),
        ("gatenorm run m --bundle --drop 1 --out x", "gatenorm run m --drop 1"),
        ("gatenorm run --bundle b m --drop 1 --out=x", "gatenorm run m --drop 1"),
    ],
)
def test_a_command_is_told_without_places(command: str, told: str, runs: list[tuple[Path, Path]]) -> None:
    spec = LayerScores.load(runs[0][0] / "scores.json").model
    assert public_command(command, spec) == told


def test_a_hub_id_keeps_its_owner(runs: list[tuple[Path, Path]]) -> None:
    spec: ModelSpec = resolve_model(str(runs[0][0].parent / "model"))
    hub = spec.model_copy(update={"name": "owner/model", "path": "/cache/snapshots/0a1b"})
    assert public_command("gatenorm run owner/model --drop 1", hub) == "gatenorm run owner/model --drop 1"
