"""Engines of a bundle: their record, their bindings, and the graph that they were built from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gatenorm_export.building.opening import check_runnable, read_engine, record_file
from gatenorm_export.bundling.interface import GraphInterface
from gatenorm_export.bundling.public import public_engine
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.progress import Progress
from gatenorm_export.records import BundleEngine, EngineArtifact, TensorSpec

FOLDER = "engines"

_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
_WHY = {
    "tensorrt": "TensorRT times kernels while it builds and takes the fastest, which need not be the same twice",
    "tensorrt-rtx": "TensorRT-RTX does not promise the same bytes for the same graph",
}


@dataclasses.dataclass(frozen=True)
class FoundEngine:
    """An engine on disk, its record, and its entry in the manifest."""

    path: Path
    record: EngineArtifact
    entry: BundleEngine


def find_engines(paths: Sequence[Path], interface: GraphInterface) -> tuple[FoundEngine, ...]:
    """Read every engine, and hold it against its record and the graph.

    Raises:
        InputError: an engine or its record is missing or damaged, or has other bindings than the graph.
        RefusedError: it was built from another graph, or two have the same name.
    """
    found = [_found(path, interface) for path in paths]
    names = [engine.entry.file for engine in found]
    for name in names:
        if names.count(name) > 1:
            raise RefusedError(f"{Path(name).name}: two engines have this name; give them names of their own")
    return tuple(found)


def _found(path: Path, interface: GraphInterface) -> FoundEngine:
    record = read_engine(path)
    graph = interface.graph
    if record.parent_sha256 != graph.sha256:
        raise RefusedError(
            f"{path}: was built from the graph {record.parent_sha256[:12]}, the bundle's is {graph.sha256[:12]}; build "
            "it from this one"
        )
    if (record.n_inputs, record.n_outputs) != (len(graph.inputs), len(graph.outputs)):
        raise InputError(
            f"{path}: has {record.n_inputs} inputs and {record.n_outputs} outputs, its graph {len(graph.inputs)} and "
            f"{len(graph.outputs)}; build it again"
        )
    name = f"{FOLDER}/{path.name}"
    entry = BundleEngine(
        file=name,
        record=record_file(Path(name)).as_posix(),
        flavour=record.flavour,
        flavour_version=record.flavour_version,
        gpu=record.gpu,
        capabilities=record.capabilities,
        precision=record.precision,
        profiles=record.profiles,
        inputs=_bindings(graph.inputs, record),
        outputs=_bindings(graph.outputs, record),
        not_reproducible=_WHY[record.flavour],
    )
    return FoundEngine(path, public_engine(record), entry)


def _bindings(specs: Sequence[TensorSpec], record: EngineArtifact) -> tuple[TensorSpec, ...]:
    """The graph's tensors in the types that the engine was built with: its caches may have been narrowed."""
    narrowed = set(record.prepared.caches) if record.prepared is not None else set()
    dtype = _DTYPES.get(record.precision, "")
    return tuple(spec.model_copy(update={"dtype": dtype}) if spec.name in narrowed else spec for spec in specs)


def check_entry(path: Path, entry: BundleEngine, graph_sha256: str) -> EngineArtifact:
    """The record of a bundled engine, held against the manifest.

    Raises:
        InputError: they contradict each other.
    """
    record = read_engine(path)
    for what, here, there in (
        ("graph", record.parent_sha256, graph_sha256),
        ("flavour", record.flavour, entry.flavour),
        ("version", record.flavour_version, entry.flavour_version),
        ("precision", record.precision, entry.precision),
        ("profiles", record.profiles, entry.profiles),
        ("number of inputs", record.n_inputs, len(entry.inputs)),
        ("number of outputs", record.n_outputs, len(entry.outputs)),
    ):
        if here != there:
            raise InputError(f"{path.name}: the manifest tells of another {what} than its record; bundle it again")
    return record


def run_engine(path: Path, record: EngineArtifact, graph: Path | None, progress: Progress) -> tuple[bool | None, str]:
    """Run an engine against the graph beside it, where there is a GPU; whether they agree, and what was found.

    Raises:
        MissingPartError: the engine's TensorRT is not installed.
        RefusedError: it was built by another version or for another GPU, there is no GPU, or it fails.
    """
    check_runnable(path, record)
    if graph is None:
        return None, "this machine can run it; there is no graph in the bundle to hold it against"
    from gatenorm_export.building import find_gpu
    from gatenorm_export.comparing.engine_accuracy import check_engine

    accuracy = check_engine(path, record, graph, "pruned", device=str(find_gpu()), progress=progress)
    return accuracy.passed, accuracy.reason
