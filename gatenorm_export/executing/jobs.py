"""Builds and benchmarks as tasks, so that those of many plans, models and GPUs can go to many machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatenorm_export.errors import InputError
from gatenorm_export.executing.model_files import engine_inputs, graph_inputs
from gatenorm_export.executing.store import copy_artifact
from gatenorm_export.executing.tasks import Call, Executor, Outcome, Resources, Task, input_file
from gatenorm_export.graphs import graph_file
from gatenorm_export.records import EngineArtifact, FileDigest

if TYPE_CHECKING:
    from gatenorm_export.benching import BenchRequest
    from gatenorm_export.building import ShapeRequest
    from gatenorm_export.records import Precision

_PROFILE = "profile.json"
_ENGINE = "model.engine"


def build_task(
    graph: Path,
    *,
    flavour: str | None,
    shapes: ShapeRequest,
    precision: Precision | None = None,
    profile: Path | None = None,
    capabilities: tuple[str, ...] = (),
    measured: bool = True,
    cached: bool = True,
    resources: Resources | None = None,
    name: str | None = None,
) -> Task:
    """The engine of a graph, as ``gatenorm build`` makes it: its artifacts are the engine and its record.

    ``flavour`` None is what is installed where it is built, which is where the engine runs unless it is portable.
    ``cached`` lets that machine's build cache serve it.

    Raises:
        InputError: a file cannot be read.
    """
    graph = graph_file(graph)
    files = graph_inputs(graph, "graph")
    arguments = {
        "graph": files[0].name,
        "flavour": flavour,
        "shapes": dataclasses.asdict(shapes),
        "precision": precision,
        "capabilities": list(capabilities),
        "measured": measured,
        "cached": cached,
    }
    if profile is not None:
        files = (*files, input_file(profile, _PROFILE))
    return Task(name or f"build {graph}", f"{__name__}:build", arguments, files, resources)


def build(call: Call) -> dict[str, Any]:
    """Do a :func:`build_task`; the record as JSON."""
    from gatenorm_export.building import (
        BuildOptions,
        ShapeRequest,
        build_engine,
        default_cache,
        find_flavour,
        load_overrides,
    )

    arguments = call.arguments
    profile = call.inputs.get(_PROFILE)
    options = BuildOptions(
        precision=arguments["precision"],
        overrides=load_overrides(profile) if profile is not None else {},
        capabilities=tuple(arguments["capabilities"]),
        cache=default_cache() if arguments["cached"] else None,
        measured=arguments["measured"],
    )
    flavour = find_flavour(arguments["flavour"])
    # Data-centre TensorRT times its kernels as it builds, so nothing else may run meanwhile.
    with call.alone() if flavour.name == "tensorrt" else call.sharing():
        record = build_engine(
            call.inputs[arguments["graph"]],
            call.out / _ENGINE,
            flavour=flavour,
            shapes=ShapeRequest(**arguments["shapes"]),
            options=options,
            progress=call.progress,
        )
    return record.to_object()


def place_engine(executor: Executor, outcome: Outcome, engine: Path) -> EngineArtifact:
    """Put the engine of a :func:`build_task` at ``engine`` and its record beside it.

    Raises:
        GateNormError: the build failed, with its own error.
        InputError: an artifact is gone or damaged.
        OutputError: ``engine`` cannot be written.
    """
    from gatenorm_export.building.opening import record_file

    record = EngineArtifact.model_validate(outcome.result()).model_copy(update={"engine": engine.name})
    found: Mapping[str, FileDigest] = {artifact.name: artifact for artifact in outcome.artifacts}
    # A record without its engine misleads nobody for long; an engine under another's record does.
    record_file(engine).unlink(missing_ok=True)
    copy_artifact(executor.artifact(found[_ENGINE]), engine)
    record.save(record_file(engine))
    return record


def bench_task(
    base: Path,
    pruned: Path,
    *,
    backend: str,
    request: BenchRequest,
    resources: Resources | None = None,
    name: str | None = None,
) -> Task:
    """The latency of a pruned graph or engine beside its base, as ``gatenorm bench`` measures it; no artifacts.

    Raises:
        InputError: a file cannot be read; a control or a backend that works on checkpoints, which are not sent.
    """
    if request.control is not None or backend == "torch":
        raise InputError("a benchmark by an executor takes two graphs or engines, and no control; use gatenorm bench")
    if backend.startswith("tensorrt"):
        sides = engine_inputs(base, "base"), engine_inputs(pruned, "pruned")
    else:
        sides = graph_inputs(graph_file(base), "base"), graph_inputs(graph_file(pruned), "pruned")
    arguments = {
        "base": sides[0][0].name,
        "pruned": sides[1][0].name,
        "backend": backend,
        "request": dataclasses.asdict(request),
    }
    return Task(name or f"bench {pruned}", f"{__name__}:bench", arguments, (*sides[0], *sides[1]), resources)


def bench(call: Call) -> dict[str, Any]:
    """Do a :func:`bench_task`; the report as JSON."""
    from gatenorm_export.benching import BenchRequest, open_backend_for, run_bench

    arguments = call.arguments
    base, pruned = call.inputs[arguments["base"]], call.inputs[arguments["pruned"]]
    given: dict[str, Any] = arguments["request"]
    lists: dict[str, Any] = {name: tuple(value) for name, value in given.items() if isinstance(value, (list, tuple))}
    request = BenchRequest(**(given | lists))
    with call.alone():
        backend = open_backend_for(arguments["backend"], base, pruned)
        report = run_bench(backend, backend.open(base, pruned), request, progress=call.progress)
    return report.to_object()
