"""Runtimes that are loaded to be known, each in a process of its own: what crashes there does no harm here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from gatenorm_export.records.doctor import PartFinding

_SECONDS = 60
"""Longer than any of them takes to load on a busy machine; one that hangs must not hang doctor."""

_ORT = "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
_FLAVOUR = (
    "import json, sys; from gatenorm_export.building.flavours import find_flavour; "
    "print(json.dumps([find_flavour(sys.argv[1]).version, []]))"
)


def onnxruntime_part() -> PartFinding:
    """ONNX Runtime and the providers that it was built with."""
    remedy = 'pip install "gatenorm[ort]"'
    return _part("onnxruntime", ("onnxruntime",), [_ORT], remedy)


def tensorrt_part() -> PartFinding:
    """TensorRT for data-centre GPUs, and polygraphy."""
    return _part("tensorrt", ("tensorrt",), [_FLAVOUR, "tensorrt"], 'pip install "gatenorm[tensorrt]"')


def tensorrt_rtx_part() -> PartFinding:
    """TensorRT-RTX, which builds without a GPU, and polygraphy."""
    modules = ("tensorrt_rtx", "tensorrt_rtx_bindings")
    return _part("tensorrt-rtx", modules, [_FLAVOUR, "tensorrt-rtx"], 'pip install "gatenorm[trt-rtx]"')


def any_tensorrt_part(tensorrt: PartFinding, rtx: PartFinding) -> PartFinding:
    """One of the two flavours."""
    ready = [part for part in (tensorrt, rtx) if part.state == "ready"]
    remedy = f"{rtx.remedy}, or {tensorrt.remedy} for data-centre GPUs"
    return PartFinding(
        name="any-tensorrt",
        kind="runtime",
        state="ready" if ready else "missing",
        detail=" and ".join(f"{part.name} {part.version}" for part in ready) or "no TensorRT is installed",
        remedy=None if ready else remedy,
    )


def cuda_provider_part(ort: PartFinding) -> PartFinding:
    """ONNX Runtime's CUDA provider."""
    ready = ort.state == "ready" and "CUDAExecutionProvider" in ort.detail
    return PartFinding(
        name="cuda-provider",
        kind="runtime",
        state="ready" if ready else "missing",
        version=ort.version if ready else None,
        detail="CUDAExecutionProvider" if ready else "the installed ONNX Runtime is not built for CUDA",
        remedy=None if ready else 'pip uninstall -y onnxruntime && pip install "gatenorm[ort-gpu]"',
    )


def _part(name: str, modules: tuple[str, ...], program: list[str], remedy: str) -> PartFinding:
    if not any(importlib.util.find_spec(module) for module in modules):
        return PartFinding(name=name, kind="runtime", state="missing", detail="not installed", remedy=remedy)
    found, problem = _loaded(program)
    if problem is not None:
        remedy += " --force-reinstall"
        return PartFinding(name=name, kind="runtime", state="unfit", detail=f"does not load: {problem}", remedy=remedy)
    version, details = found
    return PartFinding(name=name, kind="runtime", state="ready", version=version, detail=", ".join(details))


def _loaded(program: list[str]) -> tuple[Any, str | None]:
    """What a program printed as JSON, or why it did not come to that."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", *program],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None, f"it does not come back within {_SECONDS} s"
    if done.returncode < 0:
        return None, f"its process was killed by signal {-done.returncode}"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return None, " ".join(lines[-1].split())[:300]
    return json.loads(done.stdout.strip().splitlines()[-1]), None
