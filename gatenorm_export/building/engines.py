"""Build a TensorRT engine from an ONNX graph, through polygraphy, or take it from the build cache."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from gatenorm_export import __version__
from gatenorm_export.artifacts import atomic_file, sha256_of
from gatenorm_export.building.build_cache import BuildCache, cache_key
from gatenorm_export.building.compiling import compile_engine
from gatenorm_export.building.flavours import Flavour
from gatenorm_export.building.gpus import Gpu, find_gpu
from gatenorm_export.building.graph_inputs import TOKENS
from gatenorm_export.building.job import BuildJob
from gatenorm_export.building.network import Network, read_network
from gatenorm_export.building.opening import PORTABLE, record_file
from gatenorm_export.building.profile_files import Overrides
from gatenorm_export.building.profiles import make_profiles
from gatenorm_export.building.resources import check_disk, check_memory
from gatenorm_export.building.shapes import ShapeRequest
from gatenorm_export.errors import OutputError, RefusedError
from gatenorm_export.kinds import kind_of_graph, no_engine_of
from gatenorm_export.precision import graph_precision, prepare_graph
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import EngineArtifact, Precision, PreparedGraph, Profile

_HALF: frozenset[Precision] = frozenset({"fp16", "bf16"})


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What a build may be told beside its shapes.

    ``precision`` None is the graph's own. ``capabilities`` are the compute capabilities that TensorRT-RTX builds for;
    none: all that it supports. ``measured`` says whether the error of a conversion is measured.
    """

    precision: Precision | None = None
    overrides: Overrides = dataclasses.field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    cache: BuildCache | None = None
    despite_memory: bool = False
    measured: bool = True

    def decides(self) -> dict[str, Any]:
        """Everything here that decides the engine, in JSON types."""
        return {
            "precision": self.precision,
            "profile": {profile: dict(inputs) for profile, inputs in self.overrides.items()},
            "capabilities": self.capabilities,
        }


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
    check_place(engine)
    reason = no_engine_of(kind_of_graph(graph))
    if reason:
        raise RefusedError(f"{graph}: {reason}")
    if options.capabilities and flavour.name != "tensorrt-rtx":
        raise RefusedError(f"{flavour.name} builds for the GPU of this machine only; compute capabilities are RTX's")
    profiles = make_profiles(graph, shapes, options.overrides, progress)
    with progress.task(f"digest {graph.name}"):
        network = read_network(graph)
    start = time.perf_counter()
    precision = options.precision or graph_precision(graph)
    gpu = find_gpu()
    key = _key(network, flavour, gpu, profiles, precision, options)
    kept = options.cache.take(key, engine, progress) if options.cache is not None else None
    if kept is not None:
        progress.say(f"{engine.name}: the same was built before; taken from the build cache")
        record = kept.model_copy(update=_origin(graph, engine, network) | {"from_cache": True})
        record.save(record_file(engine))
        return record
    _check_resources(graph, engine, network, profiles, precision, options)
    # Under a name by which the next build of this engine finds what a killed one left.
    with tempfile.TemporaryDirectory(prefix=f".{engine.name}.", suffix=".part", dir=_made(engine.parent)) as scratch:
        prepared = prepare_graph(
            graph,
            Path(scratch),
            flavour=flavour.name,
            precision=precision,
            measured=options.measured,
            progress=progress,
        )
        job = BuildJob(
            graph=str(prepared.place(Path(scratch)).resolve()),
            engine="",
            flavour=flavour.name,
            version=flavour.version,
            profiles=profiles,
            compute_capabilities=options.capabilities,
            timing_cache=_timings(options.cache, flavour, gpu),
        )
        facts = _compile(job, engine, graph, prepared, progress)
    record = EngineArtifact(
        **_origin(graph, engine, network),
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        flavour=flavour.name,
        flavour_version=flavour.version,
        precision=precision,
        prepared=prepared if prepared.changed else None,
        profiles=profiles,
        n_network_layers=facts["n_network_layers"],
        n_inputs=facts["n_inputs"],
        n_outputs=facts["n_outputs"],
        weight_bytes=facts["constant_bytes"],
        gpu=str(gpu) if gpu is not None else None,
        capabilities=_runs_on(flavour, gpu, options),
        build_seconds=time.perf_counter() - start,
        compile_seconds=facts["compile_seconds"],
        peak_bytes=facts["peak_bytes"],
        built_on=str(gpu) if gpu is not None else "a machine without a GPU",
    )
    record.save(record_file(engine))
    if options.cache is not None:
        options.cache.keep(key, engine, record, progress)
    return record


def _compile(job: BuildJob, engine: Path, graph: Path, prepared: PreparedGraph, progress: Progress) -> dict[str, Any]:
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


def _check_resources(
    graph: Path,
    engine: Path,
    network: Network,
    profiles: tuple[Profile, ...],
    precision: Precision,
    options: BuildOptions,
) -> None:
    halved = precision in _HALF
    weights = network.weight_bytes - (network.float32_bytes // 2 if halved else 0)
    shared = _shared(profiles)
    # A key and a value a sublayer, as a rule.
    caches = sum(len(bound.min) > 2 for bound in profiles[0].bounds)
    check_disk(engine.parent, weights, (caches + 1) // 2, shared=shared)
    if not options.despite_memory:
        check_memory(graph, weights, network.n_nodes, shared=shared, halved=halved or network.float32_bytes == 0)


def _shared(profiles: tuple[Profile, ...]) -> bool:
    """Whether every profile fixes the step to one token, or none does; see ``shapes.SHARED_STEP``."""
    steps = [bound.max[1:] == (1,) for profile in profiles for bound in profile.bounds if bound.input == TOKENS]
    return len(set(steps)) < 2


def _key(
    network: Network,
    flavour: Flavour,
    gpu: Gpu | None,
    profiles: tuple[Profile, ...],
    precision: Precision,
    options: BuildOptions,
) -> str:
    return cache_key(
        {
            "gatenorm": __version__,
            "network": network.network_sha256,
            "flavour": flavour.name,
            "version": flavour.version,
            "gpu": str(gpu) if gpu is not None else "none",
            "capabilities": options.capabilities,
            "profiles": [profile.model_dump(mode="json") for profile in profiles],
            "precision": precision,
            "measured": options.measured,
        }
    )


def _origin(graph: Path, engine: Path, network: Network) -> dict[str, Any]:
    """The fields of a record that come from the graph as it lies there, not from the build."""
    return {
        "engine": engine.name,
        "parent_sha256": network.sha256,
        "parent_path": str(graph.resolve()),
        "network_sha256": network.network_sha256,
        "ancestors": network.ancestors,
        "n_layers": network.n_layers,
        "dropped": network.dropped,
        "model_digest": network.model_digest,
        "recovered_from": network.recovered_from,
    }


def _runs_on(flavour: Flavour, gpu: Gpu | None, options: BuildOptions) -> tuple[str, ...]:
    if flavour.name == "tensorrt-rtx":
        return options.capabilities or PORTABLE
    return (gpu.capability,) if gpu is not None else ()


def _timings(cache: BuildCache | None, flavour: Flavour, gpu: Gpu | None) -> str | None:
    """Data-centre TensorRT times kernels on the GPU as it builds; TensorRT-RTX chooses them when it runs."""
    if cache is None or flavour.name != "tensorrt":
        return None
    where = re.sub(r"[^A-Za-z0-9.]+", "-", str(gpu) if gpu is not None else "none").strip("-")
    return str(cache.timing_file(f"{flavour.name}-{flavour.version}-{where}"))
