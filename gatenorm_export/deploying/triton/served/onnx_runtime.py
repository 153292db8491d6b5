"""A decoder graph on ONNX Runtime. Caches stay ONNX Runtime's own tensors, on its device and in any of its types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gatenorm_export.deploying.triton.served.manifest import Decoding
from gatenorm_export.deploying.triton.served.runtime import Step

ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "float16": 10, "float64": 11, "bfloat16": 16}
"""ONNX's numbers of the types that caches have."""


class OnnxRuntime:
    """One session. ``device_id`` None runs on the CPU; ``threads`` 0 leaves their number to ONNX Runtime."""

    longest_step: int | None = None

    def __init__(self, graph: Path, decoding: Decoding, *, device_id: int | None = None, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that spin behind a step take the cores from the server's own, and from other instances.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device_id is not None:
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise RuntimeError("the model is configured for a GPU, and this onnxruntime has no CUDA provider")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device_id}))
        self._session: Any = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        self._device, self._device_id = ("cpu", 0) if device_id is None else ("cuda", device_id)
        self._decoding = decoding
        names = {entry.name for entry in self._session.get_inputs()}
        self._dtypes = {
            entry.name: np.int32 if entry.type == "tensor(int32)" else np.int64 for entry in self._session.get_inputs()
        }
        missing = {cache.past for cache in decoding.caches} - names
        if missing:
            raise RuntimeError(f"{graph}: has no input {min(missing)}, which the bundle's manifest names")

    def step(self, step: Step, cache: Any) -> tuple[np.ndarray, Any]:
        """See :class:`Runtime`."""
        decoding = self._decoding
        binding = self._session.io_binding()
        for name, array in (
            (decoding.tokens, step.tokens),
            (decoding.mask, step.mask),
            (decoding.positions, step.positions),
        ):
            if name is not None:
                binding.bind_cpu_input(name, array.astype(self._dtypes[name], copy=False))
        for entry, past in zip(decoding.caches, cache or self._empty(len(step.tokens)), strict=True):
            binding.bind_ortvalue_input(entry.past, past)
        binding.bind_output(decoding.logits, "cpu")
        for entry in decoding.caches:
            binding.bind_output(entry.present, self._device, self._device_id)
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        return np.array(logits.numpy()[:, -1], np.float32), present

    def _empty(self, batch: int) -> list[Any]:
        return [
            onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                entry.shape_of(batch, 0), ELEMENT_TYPES[entry.dtype], self._device, self._device_id
            )
            for entry in self._decoding.caches
        ]
