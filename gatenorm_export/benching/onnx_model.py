"""A decoder graph in ONNX Runtime, on whichever device: its inputs bound once, its cache never leaving the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.benching.protocol import Point
from gatenorm_export.benching.timers import Timer
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS, DecodeSignature, signature_of

# ONNX's numbers of element types, for those that numpy has no name for and for counting bytes.
_TYPES: dict[str, tuple[int, int]] = {
    "tensor(float)": (1, 4),
    "tensor(float16)": (10, 2),
    "tensor(double)": (11, 8),
    "tensor(bfloat16)": (16, 2),
    "tensor(int8)": (3, 1),
    "tensor(uint8)": (2, 1),
}
_INTEGERS = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


class OnnxModel:
    """One session. ``decodes`` is False for a graph whose every step is a prefill, as of one exported without cache."""

    notes: tuple[str, ...] = ()

    def __init__(self, session: Any, graph: Path, device: str, timer: Timer, *, decodes: bool = True) -> None:
        self._session, self._device, self._timer, self._decodes = session, device, timer, decodes
        self._signature: DecodeSignature = signature_of(session, graph)
        self._types = {entry.name: entry.type for entry in session.get_inputs()}
        self._begin: dict[str, Any] = {}
        self._steps: list[dict[str, Any]] = []
        self._home: list[Any] = []
        self._past: list[Any] = []
        self._step = 0

    def refuses(self, point: Point) -> str | None:
        """Decode needs a cache to step on."""
        if point.phase == "decode" and not self._decodes:
            return "the graph keeps no cache, so that every step is a prefill; export it with its cache"
        return None

    def prepare(self, tokens: np.ndarray, steps: int) -> None:
        """Put tokens, masks and positions of the prefill and of each step on the device, and an empty cache."""
        self._home, self._past = [], []
        batch, length = tokens.shape
        self._begin = self._plain(tokens, 0)
        for entry in self._signature.past:
            self._begin[entry.name] = self._empty(entry.empty(batch).shape, self._types[entry.name])
        self._steps = [self._plain(tokens[:, -1:], length + step) for step in range(steps)]

    def prefill(self) -> None:
        """One call from an empty cache."""
        self._home = self._run(self._begin)
        self.rewind()

    def decode(self) -> None:
        """One call on the cache that the last one left."""
        past = {entry.name: value for entry, value in zip(self._signature.past, self._past, strict=True)}
        self._past = self._run(self._steps[self._step] | past)
        self._step += 1

    def rewind(self) -> None:
        """The cache of the prefill is kept, so going back costs nothing."""
        self._past, self._step = self._home, 0

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds of a call."""
        return self._timer.timed(call)

    def synchronise(self) -> None:
        """Wait for the device."""
        self._timer.synchronise()

    def kv_bytes(self) -> int:
        """Counted on the values that the last call left."""
        return sum(math.prod(value.shape()) * _TYPES[value.data_type()][1] for value in self._past)

    def close(self) -> None:
        """Let go of the session; ONNX Runtime frees it when nobody holds it."""
        self._begin, self._steps, self._home, self._past = {}, [], [], []
        self._session = None

    def _run(self, feed: dict[str, Any]) -> list[Any]:
        """Run with everything on the device; the present values, as they came."""
        binding = self._session.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, value)
        # The logits stay on the device too: a sampler there would read them.
        binding.bind_output(self._signature.logits, self._device, 0)
        for name in self._signature.present:
            binding.bind_output(name, self._device, 0)
        self._session.run_with_iobinding(binding)
        return list(binding.get_outputs()[1:])

    def _plain(self, tokens: np.ndarray, past: int) -> dict[str, Any]:
        batch, step = tokens.shape
        values = {
            TOKENS: tokens,
            MASK: np.ones((batch, past + step), np.int64),
            POSITIONS: np.tile(np.arange(past, past + step), (batch, 1)),
        }
        return {name: self._value(values[name], self._types[name]) for name in self._signature.plain}

    def _value(self, array: np.ndarray, kind: str) -> Any:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, _INTEGERS[kind]), self._device, 0)

    def _empty(self, shape: tuple[int, ...], kind: str) -> Any:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_shape_and_type(list(shape), _TYPES[kind][0], self._device, 0)
