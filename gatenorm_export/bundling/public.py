"""A run's records as its bundle tells them: names instead of folders, so that it matters not where the run lay.

What a clock said is told too, for a report without speeds would be none; such a file says why it is not the same twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.bundling.contents import Content
from gatenorm_export.records import (
    ComparisonReport,
    EngineArtifact,
    ExportedGraph,
    LayerScores,
    ModelSpec,
    PrunedGraph,
    PrunePlan,
)
from gatenorm_export.reporting import report_texts
from gatenorm_export.run_folder import COMPARISON, PLAN, SCORES, report_material

MEASURED = "it tells speeds, which no two measurements give alike"
BUILT = "it tells of engines, which no two builds give alike"

# Where a run wrote and how it spoke there: no part of what was made.
_PLACES = {"--out", "-o", "--bundle", "--wait"}
_TALK = {"--json", "--quiet", "-q", "--force"}


@dataclasses.dataclass(frozen=True)
class PublicRun:
    """``graph`` is the pruned graph's own record; ``records`` and ``report`` are files by name."""

    graph: ExportedGraph | PrunedGraph
    records: dict[str, Content]
    report: dict[str, Content]


def public_run(folder: Path, record: ExportedGraph | PrunedGraph) -> PublicRun:
    """The records of a finished run, and its report made of them; ``record`` is the pruned graph's.

    Digests of records are those of the records as they are told here, so that a bundle can be held against itself.

    Raises:
        InputError: the folder holds no finished run, or records that do not belong together.
        RefusedError: its plan was made from another checkpoint than its scores.
    """
    material = report_material(folder)
    scores = _of_scores(LayerScores.load(folder / SCORES))
    plan = _of_plan(PrunePlan.load(folder / PLAN), scores, sha256_of(folder / SCORES))
    graph = public_graph(record)
    if isinstance(graph, PrunedGraph) and graph.plan_sha256 == sha256_of(folder / PLAN):
        graph = graph.model_copy(update={"plan_sha256": _digest(plan.to_json())})
    comparison = _of_comparison(material.comparison, scores.model)
    engines = tuple(map(public_engine, material.engines))
    why = _why(comparison, engines)
    texts = report_texts(
        dataclasses.replace(
            material, scores=scores.narrowed(plan.tower), plan=plan, comparison=comparison, engines=engines
        )
    )
    records = {SCORES: scores.to_json(), PLAN: plan.to_json(), COMPARISON: comparison.to_json()}
    return PublicRun(
        graph,
        {name: Content("record", text.encode(), why if name == COMPARISON else "") for name, text in records.items()},
        # The picture of the scores tells nothing that was measured.
        {name: Content("report", text.encode(), "" if name.endswith(".svg") else why) for name, text in texts.items()},
    )


def public_graph(record: ExportedGraph | PrunedGraph) -> ExportedGraph | PrunedGraph:
    """The record of a graph without the folders of the machine that made it."""
    changes: dict[str, object] = {}
    if record.model is not None:
        changes["model"] = public_spec(record.model)
    if isinstance(record, PrunedGraph):
        changes["parent_path"] = Path(record.parent_path).name
    return record.model_copy(update=changes)


def public_engine(record: EngineArtifact) -> EngineArtifact:
    """The record of an engine without the folders of the machine that built it."""
    prepared = record.prepared
    if prepared is not None:
        prepared = prepared.model_copy(update={"parent_path": Path(prepared.parent_path).name})
    return record.model_copy(update={"parent_path": Path(record.parent_path).name, "prepared": prepared})


def public_spec(spec: ModelSpec) -> ModelSpec:
    """The checkpoint without the folder that it lies in."""
    return spec.model_copy(update={"name": public_name(spec), "path": Path(spec.path).name})


def public_name(spec: ModelSpec) -> str:
    """The model's name without the folders of a path: a hub id keeps its owner."""
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", spec.name) and not spec.path.endswith(spec.name)
    return spec.name if hub else Path(spec.name).name or Path(spec.path).name


def public_command(command: str, spec: ModelSpec) -> str:
    """What was asked for, of paths the names alone: not where it was written, nor how it was shown."""
    try:
        words = shlex.split(command)
    except ValueError:
        # A quotation mark that was part of a name.
        words = command.split()
    kept: list[str] = []
    before = ""
    for word in words:
        option, _, value = word.partition("=")
        # A value of --bundle may be left out.
        place = before in _PLACES and not word.startswith("-")
        before = word
        if place or option in _PLACES or word in _TALK:
            continue
        if word.startswith("--") and value:
            kept.append(f"{option}={_named(value, spec)}")
        else:
            kept.append(_named(word, spec))
    return shlex.join(kept)


def _named(word: str, spec: ModelSpec) -> str:
    if word == spec.name:
        return public_name(spec)
    return Path(word).name or word if "/" in word else word


def _of_scores(scores: LayerScores) -> LayerScores:
    return scores.model_copy(update={"model": public_spec(scores.model)})


def _of_plan(plan: PrunePlan, scores: LayerScores, made_from: str) -> PrunePlan:
    """``made_from`` is the digest of the scores' file before its folders were left out."""
    changes: dict[str, object] = {"model_name": scores.model.name}
    if plan.scores_sha256 == made_from:
        changes["scores_sha256"] = _digest(scores.to_json())
    if plan.guard is not None:
        changes["guard"] = plan.guard.model_copy(update={"seconds": None})
    return plan.model_copy(update=changes)


def _of_comparison(comparison: ComparisonReport, spec: ModelSpec) -> ComparisonReport:
    return comparison.model_copy(
        update={
            "base": f"base/{Path(comparison.base).name}",
            "pruned": f"pruned/{Path(comparison.pruned).name}",
            "command": public_command(comparison.command, spec),
        }
    )


def _why(comparison: ComparisonReport, engines: Sequence[EngineArtifact]) -> str:
    """Why another run of the same gives other bytes; empty where it does not."""
    timed = (comparison.latency, comparison.repair_latency, comparison.engine_latency)
    reasons = [MEASURED] if any(latency is not None for latency in timed) else []
    return "; ".join([*reasons, *([BUILT] if engines else [])])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
