"""Which stages this machine can run, with versions, and what each missing part needs. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gatenorm_export.doctoring.requirements import Package, packages_of
from gatenorm_export.doctoring.stages import STAGES, Stage
from gatenorm_export.errors import UsageError, pip_install
from gatenorm_export.records.doctor import DoctorReport, PartFinding, StageFinding

__all__ = ["STAGES", "Stage", "examine", "packages_of", "stage_names"]


def stage_names() -> tuple[str, ...]:
    """What may be asked for: a stage, or a verb, which can run where one of its stages can."""
    return tuple(dict.fromkeys([name for stage in STAGES for name in (stage.verb, stage.name)]))


def examine(asked: tuple[str, ...] = ()) -> DoctorReport:
    """Look at the machine, the packages, the runtimes and the programs, and judge every stage by them.

    Raises:
        UsageError: a stage that is asked for does not exist.
        MissingPartError: gatenorm itself is not installed.
    """
    for name in asked:
        if name not in stage_names():
            raise UsageError(f"--stage {name}: there is no such; there are {', '.join(stage_names())}")
    from gatenorm_export.doctoring.machine import machine_facts, places

    found = _parts()
    stages = tuple(_judge(stage, found) for stage in STAGES)
    ready = [any(stage.ready for stage in stages if name in (stage.name, stage.verb)) for name in asked]
    return DoctorReport(
        machine=machine_facts(),
        parts=(*found.values(), *_packages()),
        places=places(),
        stages=stages,
        asked=asked,
        asked_ready=all(ready) if asked else None,
    )


def _parts() -> dict[str, PartFinding]:
    """Everything that is no package, by name. Runtimes load side by side, since each takes a second or two."""
    from gatenorm_export.doctoring.machine import gpu_part
    from gatenorm_export.doctoring.programs import (
        cmake_part,
        compiler_part,
        cpp_runtime_part,
        json_part,
        tritonserver_part,
    )
    from gatenorm_export.doctoring.runtimes import (
        any_tensorrt_part,
        cuda_provider_part,
        onnxruntime_part,
        tensorrt_part,
        tensorrt_rtx_part,
    )

    probes: tuple[Callable[[], PartFinding], ...] = (
        onnxruntime_part,
        tensorrt_part,
        tensorrt_rtx_part,
        gpu_part,
        tritonserver_part,
        compiler_part,
        cmake_part,
        json_part,
        cpp_runtime_part,
    )
    with ThreadPoolExecutor(len(probes)) as pool:
        ort, tensorrt, rtx, *others = pool.map(lambda probe: probe(), probes)
    parts = (ort, cuda_provider_part(ort), tensorrt, rtx, any_tensorrt_part(tensorrt, rtx), *others)
    return {part.name: part for part in parts}


def _packages() -> list[PartFinding]:
    """The packages of every extra that a stage needs, each once, with the first extra that brings it."""
    found: dict[str, PartFinding] = {}
    for extra in dict.fromkeys(["", *(extra for stage in STAGES for extra in stage.extras)]):
        for package in packages_of(extra):
            found.setdefault(package.name, _package_part(package, extra))
    return list(found.values())


def _package_part(package: Package, extra: str) -> PartFinding:
    return PartFinding(
        name=package.name,
        kind="package",
        state="ready" if package.fits else "missing" if package.version is None else "unfit",
        version=package.version,
        detail=package.wanted,
        remedy=None if package.fits else pip_install(extra),
    )


def _judge(stage: Stage, found: dict[str, PartFinding]) -> StageFinding:
    lacks, extras = [], []
    for extra in stage.extras:
        problems = [package.problem for package in packages_of(extra) if package.problem is not None]
        lacks += problems
        extras += [extra] if problems else []
    missing = [found[name] for name in stage.parts if found[name].state != "ready"]
    # What an extra brings and does not load is not in the extra's versions, but in the runtime.
    if "ort" in stage.extras and "ort" not in extras and found["onnxruntime"].state != "ready":
        missing.insert(0, found["onnxruntime"])
    remedies = ([pip_install(*extras)] if extras else []) + [part.remedy for part in missing if part.remedy is not None]
    return StageFinding(
        name=stage.name,
        verb=stage.verb,
        does=stage.does,
        ready=not lacks and not missing,
        lacks=tuple(dict.fromkeys([*lacks, *(f"{part.name}: {part.detail}" for part in missing)])),
        remedies=tuple(dict.fromkeys(remedies)),
    )
