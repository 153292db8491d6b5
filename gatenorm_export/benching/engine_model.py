"""An engine of either TensorRT with its buffers in torch: the cache goes round between two sets of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gatenorm_export.benching.protocol import Point
from gatenorm_export.benching.timers import Timer
from gatenorm_export.building.reach import DECODE, PREFILL, context_of
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records import EngineArtifact, Profile

_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
}
"""TensorRT's names of types -> torch's."""


class EngineModel:
    """One engine with an execution context for each of its profiles ``prefill`` and ``decode``.

    A step reads its past from one set of buffers and writes its present to another; the next step reads that one. The
    cache of the prefill has a set of its own, so that going back to it costs nothing. The sets are as long as the
    longest step needs, and the tensors in them as long as each step says, without gaps.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, engine: Any, record: EngineArtifact, stream: Any, timer: Timer, *, where: str = "cuda") -> None:
        self._engine, self._stream, self._timer, self._where = engine, stream, timer, where
        self._profiles: dict[str, Profile] = {profile.name: profile for profile in record.profiles}
        indices = {profile.name: index for index, profile in enumerate(record.profiles)}
        self._contexts = {name: self._context(indices[name]) for name in (PREFILL, DECODE)}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        outputs = [name for name in names if name not in inputs]
        self._plain = [name for name in inputs if name in {TOKENS, MASK, POSITIONS}]
        self._past = [name for name in inputs if name not in self._plain]
        self._logits, *self._present = outputs
        if len(self._past) != len(self._present):
            raise InputError(
                f"{record.engine}: {len(self._past)} cache inputs but {len(self._present)} cache outputs; build it "
                "again"
            )
        self._feeds: list[dict[str, Any]] = []
        self._sets: list[dict[str, Any]] = []
        self._scratch: Any = None
        self._batch, self._length, self._step = 0, 0, 0
        self._last = 0
        self._held = 0

    def refuses(self, point: Point) -> str | None:
        """The bounds of the engine's profiles."""
        tokens = {bound.input: bound for bound in self._profiles[PREFILL].bounds}[TOKENS]
        batch, prompt = tokens.max
        if point.batch > batch:
            return f"the engine's profiles take a batch of at most {batch}; build it with --batch {point.batch}"
        if point.sequence > prompt:
            return f"the engine takes prompts of at most {prompt} tokens; build it with --prompt {point.sequence}"
        context = context_of(tuple(self._profiles.values()))
        from gatenorm_export.benching.protocol import STEPS

        if point.phase == "decode" and context is not None and point.sequence + STEPS > context:
            return (
                f"the engine takes a context of at most {context} tokens; build it with --context "
                f"{point.sequence + STEPS}"
            )
        return None

    def prepare(self, tokens: np.ndarray, steps: int) -> None:
        """All feeds, the logits' buffer, and the cache's: the prefill's, and two that steps alternate between."""
        torch = _torch()
        self._batch, self._length = tokens.shape
        self._feeds = [self._feed(tokens, 0)]
        self._feeds += [self._feed(tokens[:, -1:], self._length + step) for step in range(steps)]
        longest = self._length + steps
        self._sets = []
        for _ in range(3 if steps else 1):
            buffers = {}
            for past in self._past:
                shape = self._shape(past, self._batch, longest)
                buffers[past] = torch.empty(math.prod(shape), dtype=self._dtype(past), device=self._where)
            self._sets.append(buffers)
        # TensorRT wants an address even for a tensor without elements.
        self._scratch = torch.empty(256, dtype=torch.uint8, device=self._where)
        logits = self._shape_of_logits(tokens.shape)
        self._out = torch.empty(math.prod(logits), dtype=self._dtype(self._logits), device=self._where)
        self.synchronise()

    def prefill(self) -> None:
        """Profile ``prefill``, from an empty cache into the first set of buffers."""
        self._run(PREFILL, self._feeds[0], None, 0, past=0)
        self.rewind()

    def decode(self) -> None:
        """Profile ``decode``: what the call before wrote is read, and the set that is free is written."""
        target = 1 if self._last != 1 else 2
        self._run(DECODE, self._feeds[1 + self._step], self._last, target, past=self._length + self._step)
        self._last = target
        self._step += 1

    def rewind(self) -> None:
        """Back to the first set."""
        self._last, self._step = 0, 0

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds of a call on the device."""
        return self._timer.timed(call)

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._timer.synchronise()

    def kv_bytes(self) -> int:
        """Of the present tensors that the last call wrote, in the shapes that the engine says."""
        return self._held

    def close(self) -> None:
        """Free contexts, engine and buffers, in this order."""
        self._contexts, self._sets, self._feeds, self._scratch, self._out = {}, [], [], None, None
        self._engine = None
        if self._where == "cuda":
            _torch().cuda.empty_cache()

    def _context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(profile, self._stream.cuda_stream):
            raise MemoryError("out of memory: the engine gave no execution context")
        return context

    def _run(self, name: str, feed: dict[str, Any], source: int | None, target: int, *, past: int) -> None:
        """Set every shape and address, and start; nothing is waited for."""
        context = self._contexts[name]
        for entry, value in feed.items():
            _check(context.set_input_shape(entry, tuple(value.shape)), name, entry)
            context.set_tensor_address(entry, value.data_ptr())
        for entry in self._past:
            _check(context.set_input_shape(entry, self._shape(entry, self._batch, past)), name, entry)
            buffer = self._scratch if source is None else self._sets[source][entry]
            context.set_tensor_address(entry, buffer.data_ptr())
        self._held = 0
        for entry, present in zip(self._past, self._present, strict=True):
            buffer = self._sets[target][entry]
            n_bytes = math.prod(context.get_tensor_shape(present)) * buffer.element_size()
            if n_bytes > buffer.nbytes:
                raise RefusedError(f"{present}: the engine says it is {n_bytes} bytes long, more than its cache input")
            self._held += n_bytes
            context.set_tensor_address(present, buffer.data_ptr())
        context.set_tensor_address(self._logits, self._out.data_ptr())
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("the engine did not start")

    def _feed(self, tokens: np.ndarray, past: int) -> dict[str, Any]:
        torch = _torch()
        batch, step = tokens.shape
        values = {
            TOKENS: tokens,
            MASK: np.ones((batch, past + step), np.int64),
            POSITIONS: np.tile(np.arange(past, past + step), (batch, 1)),
        }
        return {
            name: torch.from_numpy(np.ascontiguousarray(values[name])).to(self._where, self._dtype(name))
            for name in self._plain
        }

    def _shape(self, name: str, batch: int, past: int) -> tuple[int, ...]:
        """A cache input's shape: its first open length is the batch, every later one the past."""
        return _filled(tuple(self._engine.get_tensor_shape(name)), batch, past)

    def _shape_of_logits(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return _filled(tuple(self._engine.get_tensor_shape(self._logits)), *tokens)

    def _dtype(self, name: str) -> Any:
        return getattr(_torch(), _TYPES[self._engine.get_tensor_dtype(name).name])


def _filled(shape: tuple[int, ...], first: int, rest: int) -> tuple[int, ...]:
    found, seen = [], False
    for length in shape:
        found.append(length if length >= 0 else rest if seen else first)
        seen = seen or length < 0
    return tuple(found)


def _check(accepted: bool, profile: str, name: str) -> None:
    if not accepted:
        raise RefusedError(f"{name}: its shape is outside the engine's profile {profile}; build it with larger bounds")


def _torch() -> Any:
    import torch

    return torch
