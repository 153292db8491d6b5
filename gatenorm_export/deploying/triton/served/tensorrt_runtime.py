"""An engine of TensorRT or TensorRT-RTX as a decoder; caches stay on the GPU."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.deploying.triton.served.cuda import Cuda, DeviceMemory
from gatenorm_export.deploying.triton.served.manifest import Cache, Decoding
from gatenorm_export.deploying.triton.served.runtime import Step

_MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}

Bounds = Mapping[str, tuple[Sequence[int], Sequence[int]]]
"""The least and the largest shape of each input."""


@dataclasses.dataclass(frozen=True)
class _Held:
    """What a step leaves: the caches on the device, and how many tokens they hold."""

    memory: tuple[DeviceMemory, ...]
    length: int


class TensorRTRuntime:
    """An engine with an execution context for each of its optimisation profiles.

    ``entry`` is the engine's in the bundle's manifest. A step runs in the profile of the shortest steps that takes it.
    """

    def __init__(
        self, path: Path, entry: Mapping[str, Any], decoding: Decoding, *, device_id: int, cuda: Cuda | None = None
    ) -> None:
        self._trt = _bindings(entry)
        self._cuda = cuda or Cuda(device_id)
        self._decoding = decoding
        runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise RuntimeError(f"{path}: the engine does not load here; it runs on {entry['capabilities']} only")
        self._profiles = [_bounds(profile) for profile in entry["profiles"]]
        self._contexts = [self._context(index) for index in range(len(self._profiles))]
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._types = {name: self._engine.get_tensor_dtype(name) for name in names}
        self.longest_step: int | None = max(bounds[decoding.tokens][1][1] for bounds in self._profiles)

    def step(self, step: Step, cache: Any) -> tuple[np.ndarray, Any]:
        """See :class:`Runtime`."""
        self._cuda.use()
        decoding, batch = self._decoding, len(step.tokens)
        held = cache or self._empty(batch)
        shapes = self._shapes(step, held.length)
        context = self._contexts[self._profile(shapes)]
        plain = {
            name: self._cuda.upload(array.astype(self._trt.nptype(self._types[name]), copy=False))
            for name, array in self._plain(step).items()
        }
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
        for name, memory in plain.items():
            context.set_tensor_address(name, memory.address)
        for entry, memory in zip(decoding.caches, held.memory, strict=True):
            context.set_tensor_address(entry.past, memory.address)
        length = held.length + step.tokens.shape[1]
        present = _Held(tuple(self._cache_memory(entry, batch, length) for entry in decoding.caches), length)
        for entry, memory in zip(decoding.caches, present.memory, strict=True):
            context.set_tensor_address(entry.present, memory.address)
        return self._run(context, step), present

    def _run(self, context: Any, step: Step) -> np.ndarray:
        name = self._decoding.logits
        shape = tuple(context.get_tensor_shape(name))
        logits = np.empty(shape, self._trt.nptype(self._types[name]))
        memory = self._cuda.empty(logits.nbytes)
        context.set_tensor_address(name, memory.address)
        if not context.execute_async_v3(self._cuda.stream):
            raise RuntimeError(f"the engine failed on a step of {list(step.tokens.shape)} tokens")
        self._cuda.download(memory.address, logits)
        return np.array(logits[:, -1], np.float32)

    def _context(self, index: int) -> Any:
        context = self._engine.create_execution_context()
        if not context.set_optimization_profile_async(index, self._cuda.stream):
            raise RuntimeError(f"the engine has no optimisation profile {index}, which its record names")
        return context

    def _plain(self, step: Step) -> dict[str, np.ndarray]:
        named = (
            (self._decoding.tokens, step.tokens),
            (self._decoding.mask, step.mask),
            (self._decoding.positions, step.positions),
        )
        # An engine may do without an input that its graph has.
        return {name: array for name, array in named if name is not None and name in self._types}

    def _shapes(self, step: Step, length: int) -> dict[str, tuple[int, ...]]:
        plain = {name: tuple(array.shape) for name, array in self._plain(step).items()}
        batch = len(step.tokens)
        return plain | {entry.past: tuple(entry.shape_of(batch, length)) for entry in self._decoding.caches}

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        tokens = self._decoding.tokens
        order = sorted(range(len(self._profiles)), key=lambda index: self._profiles[index][tokens][1][1])
        for index in order:
            if all(_within(shapes[name], bounds) for name, bounds in self._profiles[index].items() if name in shapes):
                return index
        raise RuntimeError(f"no optimisation profile of the engine takes {shapes[tokens]} tokens in this step")

    def _cache_memory(self, entry: Cache, batch: int, length: int) -> DeviceMemory:
        size = self._types[entry.past].itemsize
        return self._cuda.empty(math.prod(entry.shape_of(batch, length)) * size)

    def _empty(self, batch: int) -> _Held:
        return _Held(tuple(self._cache_memory(entry, batch, 0) for entry in self._decoding.caches), 0)


def _bounds(profile: Mapping[str, Any]) -> Bounds:
    return {bound["input"]: (bound["min"], bound["max"]) for bound in profile["bounds"]}


def _within(shape: tuple[int, ...], bounds: tuple[Sequence[int], Sequence[int]]) -> bool:
    return all(low <= length <= high for low, length, high in zip(bounds[0], shape, bounds[1], strict=True))


def _bindings(entry: Mapping[str, Any]) -> Any:
    """The Python bindings of the engine's TensorRT, of the version that built it."""
    flavour, version = entry["flavour"], entry["flavour_version"]
    for name in _MODULES[flavour]:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if module.__version__ != version:
            raise RuntimeError(f"the engine was built by {flavour} {version}, and {module.__version__} is installed")
        return module
    raise RuntimeError(f"the engine needs the Python package of {flavour} {version}, which is not installed")
