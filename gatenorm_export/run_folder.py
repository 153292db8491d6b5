"""The files of a run folder by name, and its report from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import MANIFEST_NAME, manifest_file
from gatenorm_export.records import ComparisonReport, EngineArtifact, LayerScores, PrunedGraph, PrunePlan, RunManifest

if TYPE_CHECKING:
    from gatenorm_export.reporting import ReportMaterial
from gatenorm_export.small_files import inside

GRAPHS = ("base", "pruned")
SCORES, PLAN, COMPARISON = "scores.json", "plan.json", "compare.json"


def report_material(folder: Path) -> ReportMaterial:
    """Gather a run folder's records for the report.

    Raises:
        InputError: the folder holds no finished run, or records of different layers or graphs.
        RefusedError: its plan was made from another checkpoint than its scores.
    """
    from gatenorm_export.reporting import ReportMaterial

    for name in (SCORES, PLAN, COMPARISON, MANIFEST_NAME):
        if not inside(folder, name).is_file():
            raise InputError(f"{folder}: holds no {name}; `gatenorm run --out {folder}` makes it")
    manifest = RunManifest.load(folder / MANIFEST_NAME)
    plan, comparison = PrunePlan.load(folder / PLAN), ComparisonReport.load(folder / COMPARISON)
    # The name alone: a record cannot lead out of the run's folder.
    pruned = inside(folder, f"pruned/{manifest_file(Path(Path(comparison.pruned).name)).name}")
    records = [inside(folder, f"engines/{name}.engine.json") for name in GRAPHS]
    built = "build" in manifest.stages
    whole = LayerScores.load(folder / SCORES)
    if plan.tower not in whole.trends or plan.tower not in whole.towers:
        raise InputError(
            f"{folder / PLAN}: is for the tower {plan.tower!r}, which {SCORES} has no scores of; plan again"
        )
    scores = whole.narrowed(plan.tower)
    engines = tuple(EngineArtifact.load(path) for path in records) if built else ()
    repair = PrunedGraph.load(pruned).repair
    try:
        return ReportMaterial(
            scores=scores,
            plan=plan,
            comparison=comparison,
            engines=engines,
            engines_not_built=manifest.not_run.get("build", ""),
            repair=repair,
        )
    except (InputError, RefusedError) as error:
        raise type(error)(f"{folder}: {error}") from error


def engine_file(folder: Path, name: str) -> Path:
    """Where a graph's engine lies."""
    return folder / "engines" / f"{name}.engine"
