"""The NVIDIA GPU of this machine, asked of the driver itself: no framework has to be installed for it."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

# cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows, which is what a builder and a runtime use unless told otherwise."""

    name: str
    capability: str
    """The compute capability, such as "8.6"."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def find_gpu() -> Gpu | None:
    """The GPU that engines are built for and run on here; None where the driver is absent or shows none.

    CUDA_VISIBLE_DEVICES counts, since the driver itself reads it.
    """
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0:
        return None
    device = ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    failed = (
        driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if failed:
        return None
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


def _driver() -> Any | None:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
