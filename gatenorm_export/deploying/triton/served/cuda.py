"""As much of CUDA's runtime library as an engine needs: a stream, memory on the device, and copies. Through ctypes, so
that a server needs no further package."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_TO_DEVICE, _TO_HOST = 1, 2


class Cuda:
    """One device and one stream; everything is ordered on that stream. ``load`` opens a library by its name."""

    def __init__(self, device_id: int, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        self._library = _open(load)
        self._check("cudaSetDevice", ctypes.c_int(device_id))
        stream = ctypes.c_void_p()
        self._check("cudaStreamCreate", ctypes.byref(stream))
        self.stream: int = stream.value or 0
        self._device_id = device_id

    def use(self) -> None:
        """Make this thread work on the device."""
        self._check("cudaSetDevice", ctypes.c_int(self._device_id))

    def empty(self, n_bytes: int) -> DeviceMemory:
        """Memory of at least one byte: TensorRT wants an address even for a tensor without elements."""
        pointer = ctypes.c_void_p()
        self._check("cudaMallocAsync", ctypes.byref(pointer), ctypes.c_size_t(max(n_bytes, 1)), self._on_stream())
        return DeviceMemory(self, pointer.value or 0)

    def upload(self, array: np.ndarray) -> DeviceMemory:
        """A copy of a contiguous array on the device."""
        memory = self.empty(array.nbytes)
        self._copy(memory.address, array.ctypes.data, array.nbytes, _TO_DEVICE)
        return memory

    def download(self, address: int, array: np.ndarray) -> None:
        """Fill a contiguous array from the device, and wait for everything on the stream."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)
        self._check("cudaStreamSynchronize", self._on_stream())

    def free(self, address: int) -> None:
        """Give memory back once the stream is done with it."""
        self._check("cudaFreeAsync", ctypes.c_void_p(address), self._on_stream())

    def _copy(self, to: int, source: int, n_bytes: int, kind: int) -> None:
        self._check(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(n_bytes),
            ctypes.c_int(kind),
            self._on_stream(),
        )

    def _on_stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"{function} failed with CUDA error {status}")


class DeviceMemory:
    """Memory on the device, freed when nobody holds it any more."""

    def __init__(self, cuda: Cuda, address: int) -> None:
        self._cuda, self.address = cuda, address

    def __del__(self) -> None:
        self._cuda.free(self.address)


def _open(load: Callable[[str], Any]) -> Any:
    for name in _LIBRARIES:
        try:
            return load(name)
        except OSError:
            continue
    raise RuntimeError(f"CUDA's runtime library is not found ({', '.join(_LIBRARIES)}); engines need it")
