"""The process in which TensorRT parses and builds. Run by :mod:`gatenorm_export.building.compiling`, not by users.

A process of its own can be stopped at once (the builder goes on for tens of seconds between two steps of its progress),
gives all its memory back, and takes nothing with it when the builder crashes or is killed for lack of memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gatenorm_export.building.flavours import Flavour
from gatenorm_export.building.job import BuildJob
from gatenorm_export.errors import RefusedError
from gatenorm_export.memory import PROCESS, kernel_bytes
from gatenorm_export.records import Profile

_REPORT_SECONDS = 0.1


def main() -> int:
    """Read one job from stdin, build, and write JSON lines to what was stdout; everything else goes to stderr."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = BuildJob.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        result = _compile(job, lambda **message: _send(messages, message))
    except RefusedError as error:
        _send(messages, {"refused": str(error)})
        return 0
    except _Unwritten as error:
        _send(messages, {"unwritten": str(error)})
        return 0
    _send(messages, {"result": result})
    return 0


class _Unwritten(Exception):
    """The engine was built, and there is no place for it."""


def _leave_with_parent() -> None:
    """The parent holds the other end of stdin: at its end, nobody waits for the engine any more."""
    sys.stdin.read()
    os._exit(1)


def _send(messages: Any, message: dict[str, Any]) -> None:
    messages.write(json.dumps(message) + "\n")
    messages.flush()


def _compile(job: BuildJob, report: Any) -> dict[str, Any]:
    trt = Flavour(job.flavour, job.version).module()
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR
    # The parser owns the weights that the network points to.
    builder, network, _parser = _parse(trt, job.graph)
    _check_inputs(trt, network, job)
    facts = {
        "n_network_layers": network.num_layers,
        "n_inputs": network.num_inputs,
        "n_outputs": network.num_outputs,
        "constant_bytes": _constant_bytes(trt, network),
    }
    report(parsed=facts)
    start = time.perf_counter()
    try:
        serialized = _serialize(trt, builder, network, job, report)
    except PolygraphyException as error:
        # polygraphy only says that there is no engine; the reason is in TensorRT's log, which the parent reads.
        raise RefusedError(f"{job.graph}: TensorRT cannot build an engine from it") from error
    seconds = time.perf_counter() - start
    try:
        Path(job.engine).write_bytes(serialized)
    except OSError as error:
        raise _Unwritten(f"the engine's {serialized.nbytes:,} bytes cannot be written ({error.strerror})") from error
    return facts | {"compile_seconds": seconds, "peak_bytes": kernel_bytes(PROCESS, "VmHWM:")}


def _serialize(trt: Any, builder: Any, network: Any, job: BuildJob, report: Any) -> Any:
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork

    options: dict[str, Any] = {"profiles": [_profile(profile) for profile in job.profiles]}
    monitor = _monitor(trt, report)
    if monitor is not None:
        options["progress_monitor"] = monitor
    saving: dict[str, Any] = {}
    # TensorRT-RTX times nothing when it builds: kernels are chosen on the GPU that runs them.
    if job.timing_cache is not None and job.flavour == "tensorrt":
        options["load_timing_cache"] = saving["save_timing_cache"] = job.timing_cache
    create = CreateConfig(**options)

    def config(made_by: Any, made_for: Any) -> Any:
        made = create(made_by, made_for)
        _target(trt, made, job.compute_capabilities)
        return made

    return EngineBytesFromNetwork((builder, network), config=config, **saving)()


def _parse(trt: Any, graph: str) -> tuple[Any, Any, Any]:
    """Parse from the path, so that external data is found; polygraphy's loader keeps the errors in its log."""
    from polygraphy.backend.trt import CreateNetwork, get_trt_logger

    builder, network = CreateNetwork(strongly_typed=True)()
    parser = trt.OnnxParser(network, get_trt_logger())
    if not parser.parse_from_file(graph):
        raise RefusedError(f"{graph}: TensorRT cannot take it: {_first_error(parser)}")
    return builder, network, parser


def _first_error(parser: Any) -> str:
    if not parser.num_errors:
        return "the parser gives no reason"
    error = parser.get_error(0)
    node, operator = getattr(error, "node_name", None), getattr(error, "node_operator", None)
    where = f"node {node() or '<unnamed>'} ({operator()}): " if node and operator else ""
    # Without a driver, TensorRT-RTX adds a complaint about that to every error.
    return where + " ".join(error.desc().split("[checkMacros.cpp")[0].split())


def _check_inputs(trt: Any, network: Any, job: BuildJob) -> None:
    """What the parser made of the inputs may differ from what the graph says; polygraphy would fill gaps with 1."""
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        if entry.is_shape_tensor:
            raise RefusedError(
                f"{job.graph}: input {entry.name} is read as a shape, whose values a profile would have to bound; "
                "export the graph with that shape taken from another input"
            )
        shape = tuple(entry.shape)
        for profile in job.profiles:
            bound = next((bound for bound in profile.bounds if bound.input == entry.name), None)
            if bound is None and any(length < 0 for length in shape):
                axis = next(axis for axis, length in enumerate(shape) if length < 0)
                raise RefusedError(
                    f"{job.graph}: dimension {axis} of input {entry.name} has no bound in {profile.name}"
                )


def _profile(profile: Profile) -> Any:
    from polygraphy.backend.trt import Profile as PolygraphyProfile

    made = PolygraphyProfile()
    for bound in profile.bounds:
        made.add(bound.input, bound.min, bound.opt, bound.max)
    return made


def _target(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    """Of TensorRT-RTX, the GPUs that the engine is for; none: every one that it supports, which is its default."""
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        known = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if known is None or not config.set_compute_capability(known, index):
            offered = ", ".join(_dotted(name) for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
            raise RefusedError(f"TensorRT-RTX builds nothing for compute capability {capability}; it offers {offered}")


def _dotted(name: str) -> str:
    return f"{name[2:-1]}.{name[-1]}"


def _monitor(trt: Any, report: Any) -> Any | None:
    """Count the builder's own steps; their number becomes known phase by phase. None where the API has no monitor."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps, self.done, self.told = 0, 0, 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps += num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.done += 1
            if time.monotonic() - self.told >= _REPORT_SECONDS:
                self.told = time.monotonic()
                report(steps=self.steps, done=self.done)
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Nothing to do: steps were counted one by one."""

    return Monitor()


def _constant_bytes(trt: Any, network: Any) -> int:
    """Bytes of all constants of a parsed network, shapes and scalars included."""
    total = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.CONSTANT:
            # The bindings give the base class; the weights are the subclass's.
            layer.__class__ = trt.IConstantLayer
            weights = layer.weights
            # Of two numbers a byte, TensorRT-RTX 1.7 tells a negative number of bytes.
            packed = getattr(weights.dtype, "name", "") in {"INT4", "FP4"}
            total += (weights.size + 1) // 2 if packed else int(weights.nbytes)
    return total


if __name__ == "__main__":
    sys.exit(main())
