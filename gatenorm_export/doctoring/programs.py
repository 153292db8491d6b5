"""Programs and C++ headers that deployment needs, found on the path and where SDKs install themselves."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.records.doctor import PartFinding

_SYSTEM = ("/usr/include", "/usr/local/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu")


def tritonserver_part() -> PartFinding:
    """Triton Inference Server, on the path, where its image has it, or in the wheel nvidia-pytriton."""
    path = shutil.which("tritonserver") or shutil.which("tritonserver", path="/opt/tritonserver/bin")
    if path is not None:
        return PartFinding(name="tritonserver", kind="program", state="ready", detail=path)
    try:
        version = importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        remedy = "use the image nvcr.io/nvidia/tritonserver, or pip install nvidia-pytriton, which brings one"
        return PartFinding(name="tritonserver", kind="program", state="missing", detail="not found", remedy=remedy)
    detail = f"in nvidia-pytriton {version}"
    return PartFinding(name="tritonserver", kind="program", state="ready", detail=detail)


def compiler_part() -> PartFinding:
    """A C++ compiler: the one that CXX names, or the system's."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path is not None:
            return PartFinding(name="c++", kind="program", state="ready", version=_version(path), detail=path)
    remedy = "apt-get install g++"
    return PartFinding(name="c++", kind="program", state="missing", detail="no compiler is found", remedy=remedy)


def cmake_part() -> PartFinding:
    """CMake."""
    path = shutil.which("cmake")
    if path is None:
        remedy = "pip install cmake"
        return PartFinding(name="cmake", kind="program", state="missing", detail="not found", remedy=remedy)
    return PartFinding(name="cmake", kind="program", state="ready", version=_version(path), detail=path)


def json_part() -> PartFinding:
    """nlohmann-json, a header."""
    header = _header("nlohmann/json.hpp") or _packaged_header("nlohmann-json", "json.hpp")
    return PartFinding(
        name="nlohmann-json",
        kind="headers",
        state="ready" if header else "missing",
        detail=str(header or "nlohmann/json.hpp is not found"),
        remedy=None if header else 'pip install "gatenorm[cpp]", or apt-get install nlohmann-json3-dev',
    )


def cpp_runtime_part() -> PartFinding:
    """Any runtime that C++ programs can be built on."""
    found = list(_cpp_runtimes())
    remedy = "pip install openvino, or give -DONNXRUNTIME_ROOT=, -DTENSORRT_ROOT= or -DTENSORRT_RTX_ROOT= to cmake"
    return PartFinding(
        name="c++ runtime",
        kind="headers",
        state="ready" if found else "missing",
        detail=", ".join(found) or "neither OpenVINO nor headers of ONNX Runtime or TensorRT are found",
        remedy=None if found else remedy,
    )


def _cpp_runtimes() -> Iterator[str]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        yield f"OpenVINO {importlib.metadata.version('openvino')}"
    for name, header, variable in (
        ("ONNX Runtime", "onnxruntime_cxx_api.h", "ONNXRUNTIME_ROOT"),
        ("TensorRT", "NvInfer.h", "TENSORRT_ROOT"),
        ("TensorRT-RTX", "NvInfer.h", "TENSORRT_RTX_ROOT"),
    ):
        # TensorRT's own header has the same name as that of TensorRT-RTX, which installs nothing in system folders.
        path = _header(header, variable, in_system=variable != "TENSORRT_RTX_ROOT")
        if path is not None:
            yield f"{name} ({path.parent})"


def _header(name: str, variable: str | None = None, *, in_system: bool = True) -> Path | None:
    root = os.environ.get(variable) if variable else None
    places = [Path(root), Path(root) / "include"] if root else []
    if in_system:
        places += [Path(place) for place in (*_SYSTEM, "/usr/include/onnxruntime", "/usr/local/include/onnxruntime")]
    return next((place / name for place in places if (place / name).is_file()), None)


def _packaged_header(package: str, name: str) -> Path | None:
    """A header that a Python package brings."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(package) or ():
            if file.name == name and (path := Path(str(file.locate()))).is_file():
                return path
    return None


def _version(program: str) -> str | None:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout)
    return found[0] if found else None
