"""Build a TensorRT engine from an ONNX graph, through polygraphy."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import atomic_file, sha256_of
from gatenorm_export.building.flavours import Flavour
from gatenorm_export.building.profiles import ShapeRequest, make_profiles
from gatenorm_export.errors import RefusedError
from gatenorm_export.kinds import kind_of_graph, no_engine_of
from gatenorm_export.progress import Progress, Quiet, Task
from gatenorm_export.records import EngineArtifact, Profile
from gatenorm_export.silence import silent_polygraphy


def build_engine(
    graph: Path, engine: Path, *, flavour: Flavour, shapes: ShapeRequest, progress: Progress | None = None
) -> EngineArtifact:
    """Build ``engine`` from ``graph`` with a prefill and a decode profile; its record goes to ``engine`` + ``.json``.

    The network is strongly typed: it computes in the graph's own precision. TensorRT-RTX builds without a GPU.

    Raises:
        RefusedError: TensorRT cannot parse or build the graph, or a dynamic length has no bound.
        InputError: the graph cannot be read.
        OutputError: the engine cannot be written.
    """
    progress = progress or Quiet()
    reason = no_engine_of(kind_of_graph(graph))
    if reason:
        raise RefusedError(f"{graph}: {reason}")
    profiles = make_profiles(graph, shapes)
    trt = flavour.module()
    start = time.perf_counter()
    with silent_polygraphy(), progress.task(f"build {engine.name} ({flavour.name} {flavour.version})") as bar:
        builder, network, parser = _parse(trt, graph)
        counts = network.num_layers, network.num_inputs, network.num_outputs
        serialized = _build(trt, builder, network, profiles, bar, graph)
        # The network holds a copy of every weight; it is of no use once the engine exists.
        del parser, network, builder
        with atomic_file(engine) as temporary:
            temporary.write_bytes(serialized)
        del serialized
    record = EngineArtifact(
        engine=engine.name,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        parent_sha256=sha256_of(graph),
        flavour=flavour.name,
        flavour_version=flavour.version,
        precision="fp32",
        profiles=profiles,
        n_network_layers=counts[0],
        n_inputs=counts[1],
        n_outputs=counts[2],
        build_seconds=time.perf_counter() - start,
        built_on=_gpu_name() or "a machine without a GPU",
    )
    record.save(engine.with_name(f"{engine.name}.json"))
    return record


def _parse(trt: Any, graph: Path) -> tuple[Any, Any, Any]:
    """Parse from the path, so that external data is found; polygraphy's loader keeps the errors in its log."""
    from polygraphy.backend.trt import CreateNetwork, get_trt_logger

    builder, network = CreateNetwork(strongly_typed=True)()
    parser = trt.OnnxParser(network, get_trt_logger())
    if not parser.parse_from_file(str(graph)):
        raise RefusedError(f"{graph}: TensorRT cannot take it: {_first_error(parser)}")
    return builder, network, parser


def _first_error(parser: Any) -> str:
    if not parser.num_errors:
        return "the parser gives no reason"
    error = parser.get_error(0)
    node, operator = getattr(error, "node_name", None), getattr(error, "node_operator", None)
    where = f"node {node() or '<unnamed>'} ({operator()}): " if node and operator else ""
    return where + " ".join(error.desc().split())


def _build(trt: Any, builder: Any, network: Any, profiles: tuple[Profile, ...], bar: Task, graph: Path) -> Any:
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork
    from polygraphy.backend.trt import Profile as PolygraphyProfile
    from polygraphy.exception import PolygraphyException

    wanted = []
    for profile in profiles:
        polygraphy_profile = PolygraphyProfile()
        for bound in profile.bounds:
            polygraphy_profile.add(bound.input, bound.min, bound.opt, bound.max)
        wanted.append(polygraphy_profile)
    config = CreateConfig(profiles=wanted, progress_monitor=_monitor(trt, bar))
    try:
        return EngineBytesFromNetwork((builder, network), config=config)()
    except PolygraphyException as error:
        first = (str(error).strip().splitlines() or ["no reason was given"])[0]
        raise RefusedError(f"{graph}: TensorRT cannot build an engine from it ({first})") from error


def _monitor(trt: Any, bar: Task) -> Any:
    """Count the builder's own steps; their number becomes known phase by phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps += num_steps
            bar.total(self.steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar.advance()
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Nothing to do: steps were counted one by one."""

    return Monitor()


def _gpu_name() -> str | None:
    query = shutil.which("nvidia-smi")
    if query is None:
        return None
    done = subprocess.run(
        [query, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    names = done.stdout.strip().splitlines()
    return names[0] if done.returncode == 0 and names else None
