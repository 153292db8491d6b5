"""Backends by name, imported when they are asked for."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from gatenorm_export.benching.protocol import Backend
from gatenorm_export.errors import MissingPartError, RefusedError, UsageError

BACKENDS: dict[str, str] = {
    "ort-cpu": "ort_cpu:OrtCpu",
    "ort-cuda": "ort_cuda:OrtCuda",
    "tensorrt": "trt:TensorRT",
    "tensorrt-rtx": "trt_rtx:TensorRTRTX",
    "torch": "torch_eager:TorchEager",
}
"""Name on the command line -> module of this package and class."""


def open_backend(name: str, **options: Any) -> Backend:
    """The backend of that name; ``options`` are torch's ``device`` and ``precision``.

    Raises:
        UsageError: there is no such backend.
        MissingPartError: a package that it needs is not installed.
        RefusedError: it needs a GPU and there is none.
    """
    if name not in BACKENDS:
        raise UsageError(f"--backend {name}: no such backend; there are {', '.join(BACKENDS)}")
    module, _, kind = BACKENDS[name].partition(":")
    found: Backend = getattr(importlib.import_module(f"gatenorm_export.benching.{module}"), kind)(**options)
    return found


def open_backend_for(name: str, base: Path, pruned: Path, **options: Any) -> Backend:
    """The same, where a machine that lacks something still says first what is wrong with two engines.

    Raises:
        InputError: an engine is damaged or none, even where it could not be run anyway.
        RefusedError: two engines are no pair, or the backend has no GPU.
        MissingPartError: see :func:`open_backend`.
    """
    try:
        return open_backend(name, **options)
    except (MissingPartError, RefusedError):
        if name.startswith("tensorrt"):
            from gatenorm_export.building.opening import check_pair, read_engine

            check_pair(read_engine(base), read_engine(pruned))
        raise


def backend_for(base: Path, pruned: Path) -> str:
    """The backend that files imply when none is named: an engine's own TensorRT, torch for a plan, else ort-cpu."""
    for path in (base, pruned):
        record = path.with_name(f"{path.name}.json")
        if path.is_file() and path.suffix != ".onnx" and record.is_file():
            flavour = _value(record, "flavour")
            if flavour in BACKENDS:
                return flavour
    if pruned.suffix == ".json" and _value(pruned, "kind") == "plan":
        return "torch"
    return "ort-cpu"


def _value(path: Path, key: str) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get(key, ""))
    except (OSError, ValueError, AttributeError):
        return ""
