"""Builds and benchmarks as tasks, so that those of many plans, models and GPUs can go to many machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatenorm_export.errors import UsageError
from gatenorm_export.executing.model_files import checkpoint_inputs, engine_inputs, graph_inputs
from gatenorm_export.executing.store import place_artifact
from gatenorm_export.executing.tasks import Call, Executor, InputFile, Outcome, Task, input_file
from gatenorm_export.graphs import graph_file
from gatenorm_export.records import EngineArtifact, FileDigest

if TYPE_CHECKING:
    from gatenorm_export.benching import BenchRequest
    from gatenorm_export.building import BuildOptions, ShapeRequest

_ENGINE = "model.engine"


def build_task(
    graph: Path,
    *,
    flavour: str | None,
    shapes: ShapeRequest,
    options: BuildOptions,
    name: str | None = None,
) -> Task:
    """The engine of a graph, as ``gatenorm build`` makes it: its artifact is the engine, its value the record.

    ``flavour`` None is what is installed where it is built, which is where the engine runs unless it is portable. With
    a cache in ``options``, that machine's own may serve the build.

    Raises:
        InputError: a file cannot be read.
    """
    graph = graph_file(graph)
    files = graph_inputs(graph, "graph")
    arguments = {
        "graph": files[0].name,
        "flavour": flavour,
        "shapes": dataclasses.asdict(shapes),
        "precision": options.precision,
        "overrides": {profile: dict(inputs) for profile, inputs in options.overrides.items()},
        "capabilities": list(options.capabilities),
        "measured": options.measured,
        "despite_memory": options.despite_memory,
        "cached": options.cache is not None,
    }
    return Task(name or f"build {graph}", f"{__name__}:build", arguments, files)


def build(call: Call) -> dict[str, Any]:
    """Do a :func:`build_task`; the record as JSON."""
    from gatenorm_export.building import BuildOptions, ShapeRequest, build_engine, default_cache, find_flavour

    arguments = call.arguments
    options = BuildOptions(
        precision=arguments["precision"],
        overrides=arguments["overrides"],
        capabilities=tuple(arguments["capabilities"]),
        cache=default_cache() if arguments["cached"] else None,
        measured=arguments["measured"],
        despite_memory=arguments["despite_memory"],
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
    place_artifact(executor.artifact(found[_ENGINE]), engine)
    record.save(record_file(engine))
    return record


def bench_task(
    base: Path,
    pruned: Path,
    *,
    backend: str,
    request: BenchRequest,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Task:
    """The latency of a pruned model beside its base, as ``gatenorm bench`` measures it: its value is the report.

    ``options`` are the backend's: torch's ``device`` and ``precision``, the ``graphs`` of engines. The request's
    command is left out, since it changes no result; whoever takes the report says what it was.

    Raises:
        InputError: a file cannot be read.
        UsageError: a control, which would be a third model.
    """
    if request.control is not None:
        raise UsageError("--control holds one pruned model against one native model, in this process; leave it out")
    options = dict(options or {})
    sides = _sides(base, pruned, backend)
    files = [*sides[0], *sides[1]]
    graphs: list[str] = []
    for folder, graph in zip(("base-graph", "pruned-graph"), options.pop("graphs", ()), strict=False):
        files += graph_inputs(graph_file(graph), folder)
        graphs.append(f"{folder}/{graph_file(graph).name}")
    arguments = {
        "base": sides[0][0].name,
        # A checkpoint is a folder of files of one rank; every other model is called by its first file.
        "base_is_folder": backend == "torch" and base.suffix != ".gguf",
        "pruned": sides[1][0].name,
        "backend": backend,
        "options": options,
        "graphs": graphs,
        "request": dataclasses.asdict(request) | {"command": ""},
    }
    return Task(name or f"bench {pruned}", f"{__name__}:bench", arguments, tuple(files))


def bench(call: Call) -> dict[str, Any]:
    """Do a :func:`bench_task`; the report as JSON."""
    from gatenorm_export.benching import BenchRequest, open_backend_for, run_bench

    arguments = call.arguments
    base, pruned = call.inputs[arguments["base"]], call.inputs[arguments["pruned"]]
    base = base.parent if arguments["base_is_folder"] else base
    options = dict(arguments["options"])
    if arguments["graphs"]:
        options["graphs"] = tuple(call.inputs[name] for name in arguments["graphs"])
    given: dict[str, Any] = arguments["request"]
    lists: dict[str, Any] = {name: tuple(value) for name, value in given.items() if isinstance(value, (list, tuple))}
    request = BenchRequest(**(given | lists))
    with call.alone():
        backend = open_backend_for(arguments["backend"], base, pruned, **options)
        report = run_bench(backend, backend.open(base, pruned), request, progress=call.progress)
    return report.to_object()


def _sides(base: Path, pruned: Path, backend: str) -> tuple[tuple[InputFile, ...], tuple[InputFile, ...]]:
    """The files of each side, the one that it is called by first."""
    if backend == "torch":
        return checkpoint_inputs(str(base), "base"), (input_file(pruned, f"pruned/{pruned.name}"),)
    if backend.startswith("tensorrt"):
        return engine_inputs(base, "base"), engine_inputs(pruned, "pruned")
    return graph_inputs(graph_file(base), "base"), graph_inputs(graph_file(pruned), "pruned")
