"""Build a TensorRT engine from an ONNX graph, through polygraphy, or take it from the build cache."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import atomic_file
from gatenorm_export.building.build_plan import BuildOptions, BuildPlan
from gatenorm_export.building.compiling import compile_engine
from gatenorm_export.building.flavours import Flavour
from gatenorm_export.building.gpus import find_gpu
from gatenorm_export.building.job import BuildJob
from gatenorm_export.building.network import read_network
from gatenorm_export.building.opening import record_file
from gatenorm_export.building.profiles import make_profiles
from gatenorm_export.building.shapes import ShapeRequest
from gatenorm_export.errors import OutputError, RefusedError
from gatenorm_export.kinds import kind_of_graph, no_engine_of
from gatenorm_export.precision import graph_precision, prepare_graph
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import EngineArtifact, PreparedGraph


def build_engine(
    graph: Path,
    engine: Path,
    *,
    flavour: Flavour,
    shapes: ShapeRequest,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> EngineArtifact:
    """Build ``engine`` from ``graph`` with a prefill and a decode profile; its record goes to ``engine`` + ``.json``.

    Operators that the flavour does not take are lowered, and the graph is put into the precision that was asked for,
    before the build; the network is strongly typed: it computes in the graph's own types. TensorRT-RTX builds without a
    GPU. An interrupted build leaves what was there before.

    Raises:
        RefusedError: TensorRT cannot take, parse or build the graph, a profile cannot be made or contradicts the graph,
            or memory is too small.
        InputError: the graph cannot be read.
        OutputError: the engine cannot be written, or the disk is too small.
    """
    progress, options = progress or Quiet(), options or BuildOptions()
    plan = _plan(graph, engine, flavour, shapes, options, progress)
    start = time.perf_counter()
    record = _from_cache(plan, progress)
    if record is not None:
        return record
    plan.check_resources()
    prepared, facts = _build(plan, progress)
    record = plan.record(prepared, facts, time.perf_counter() - start)
    record.save(record_file(engine))
    if options.cache is not None:
        options.cache.keep(plan.key, engine, record, progress)
    return record


def _plan(
    graph: Path, engine: Path, flavour: Flavour, shapes: ShapeRequest, options: BuildOptions, progress: Progress
) -> BuildPlan:
    """Refuse what cannot be built, as far as that shows before the build, and settle everything else."""
    check_place(engine)
    reason = no_engine_of(kind_of_graph(graph))
    if reason:
        raise RefusedError(f"{graph}: {reason}")
    if options.capabilities and flavour.name != "tensorrt-rtx":
        raise RefusedError(f"{flavour.name} builds for the GPU of this machine only; compute capabilities are RTX's")
    profiles = make_profiles(graph, shapes, options.overrides, progress)
    with progress.task(f"digest {graph.name}"):
        network = read_network(graph)
    precision = options.precision or graph_precision(graph)
    return BuildPlan(graph, engine, flavour, find_gpu(), options, profiles, network, precision)


def _from_cache(plan: BuildPlan, progress: Progress) -> EngineArtifact | None:
    """The record of the engine, which is at its place then; None where the same was not built before."""
    cache = plan.options.cache
    kept = cache.take(plan.key, plan.engine, progress) if cache is not None else None
    if kept is None:
        return None
    progress.say(f"{plan.engine.name}: the same was built before; taken from the build cache")
    record = kept.model_copy(update=plan.origin() | {"from_cache": True})
    record.save(record_file(plan.engine))
    return record


def _build(plan: BuildPlan, progress: Progress) -> tuple[PreparedGraph, dict[str, Any]]:
    """Prepare the graph beside the engine's place and compile it; what was prepared, and what was counted."""
    graph, engine = plan.graph, plan.engine
    # Under a name by which the next build of this engine finds what a killed one left.
    with tempfile.TemporaryDirectory(prefix=f".{engine.name}.", suffix=".part", dir=_made(engine.parent)) as scratch:
        folder = Path(scratch)
        prepared = prepare_graph(
            graph,
            folder,
            flavour=plan.flavour.name,
            precision=plan.precision,
            measured=plan.options.measured,
            progress=progress,
        )
        return prepared, _compile(plan.job(prepared.place(folder)), engine, graph, progress)


def _compile(job: BuildJob, engine: Path, graph: Path, progress: Progress) -> dict[str, Any]:
    """Compile under a temporary name; an old record goes before the engine that it describes is replaced."""
    label = f"build {engine.name} ({job.flavour} {job.version})"
    try:
        with progress.task(label) as bar, atomic_file(engine) as temporary:
            try:
                facts = compile_engine(job.model_copy(update={"engine": str(temporary)}), bar)
            except OutputError as error:
                raise OutputError(f"{engine}: {error}") from error
            record_file(engine).unlink(missing_ok=True)
    except RefusedError as error:
        # The user knows the graph, not the copy of it that was prepared.
        raise RefusedError(str(error).replace(job.graph, str(graph))) from error
    return facts


def check_place(engine: Path) -> None:
    """Refuse to write an engine over a graph, or its record over something that is not an engine's.

    Raises:
        OutputError: that is what is there.
    """
    if engine.is_dir() or engine.suffix in {".onnx", ".json"}:
        raise OutputError(f"{engine}: is no place for an engine; name a file such as model.engine")
    beside = record_file(engine)
    if not beside.exists():
        return
    try:
        kind = json.loads(beside.read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = "unknown"
    if kind != "engine":
        raise OutputError(f"{beside}: is in the way, and not the record of an engine; choose another name")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another output") from error
    return folder
