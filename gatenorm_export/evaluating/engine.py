"""An engine of TensorRT or TensorRT-RTX as a decoder: prefill in one optimisation profile, steps in the other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gatenorm_export.building import check_runnable, find_flavour, read_engine
from gatenorm_export.building.reach import DECODE, PREFILL, context_of
from gatenorm_export.comparing.feeds import step_feed
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS, CacheInput
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.evaluating.decoder import Reach, checked
from gatenorm_export.records import EngineArtifact, ProfileBounds
from gatenorm_export.silence import silent_polygraphy


class EngineRunner(Protocol):
    """What an engine is run through; outputs are in the network's order, logits first."""

    outputs: tuple[str, ...]
    dtypes: dict[str, type[np.generic]]

    def run(self, profile: int, inputs: dict[str, np.ndarray], wanted: tuple[str, ...]) -> list[np.ndarray]:
        """Run once in an optimisation profile; the wanted outputs, on the host."""

    def close(self) -> None:
        """Free the engine."""


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What an engine's record tells: its inputs, and the index of each profile."""

    plain: tuple[str, ...]
    past: tuple[ProfileBounds, ...]
    prefill: int
    decode: int
    reach: Reach


def check_engine(path: Path) -> EngineArtifact:
    """The record beside an engine, after everything that can be checked without loading the engine.

    Raises:
        InputError: no engine, no record, another engine's record, or profiles that are not gatenorm's.
        MissingPartError: the engine's TensorRT is not installed.
        RefusedError: it was built by another version or for another GPU, or there is no GPU.
    """
    record = read_engine(path)
    layout_of(str(path), record)
    check_runnable(path, record)
    return record


def layout_of(name: str, record: EngineArtifact) -> _Layout:
    """Read inputs and bounds off an engine's record.

    Raises:
        InputError: its profiles are not a prefill and a decode of a decoder over tokens.
    """
    profiles = {profile.name: index for index, profile in enumerate(record.profiles)}
    if not {PREFILL, DECODE} <= set(profiles):
        raise InputError(f"{name}: its record names no profiles {PREFILL} and {DECODE}; build it with gatenorm build")
    prefill = record.profiles[profiles[PREFILL]]
    inputs = {bound.input: bound for bound in prefill.bounds}
    plain = tuple(entry for entry in inputs if entry in {TOKENS, MASK, POSITIONS})
    if TOKENS not in plain:
        raise InputError(f"{name}: its record names no input {TOKENS}; only decoders over tokens can be evaluated")
    past = tuple(bound for entry, bound in inputs.items() if entry not in plain)
    batch, prompt = inputs[TOKENS].max
    # Without a cache the whole text is a prompt at every step.
    context = (context_of(record.profiles) if past else None) or prompt
    reach = Reach(batch=batch, prompt=prompt, context=context, pieces=False)
    return _Layout(plain, past, profiles[PREFILL], profiles[DECODE], reach)


class EngineDecoder:
    """An engine as a :class:`Decoder`. Prompts are fed whole: not every prompt's rest fits a prefill onto a cache."""

    def __init__(self, name: str, record: EngineArtifact, runner: EngineRunner) -> None:
        self.name = name
        self.backend = f"{record.flavour} {record.flavour_version}"
        self.vocabulary: int | None = None
        self._layout = layout_of(name, record)
        self.reach = self._layout.reach
        self.cached = bool(self._layout.past)
        self._runner = runner
        self._logits, *present = runner.outputs
        self._present = tuple(present)
        if len(self._present) != len(self._layout.past):
            raise InputError(
                f"{name}: {len(self._layout.past)} cache inputs but {len(self._present)} cache outputs; build it again"
            )
        # The batch is the first dimension; of the others, the past is the one that has a range in the decode profile.
        decode = {bound.input: bound for bound in record.profiles[self._layout.decode].bounds}
        self._caches = [
            CacheInput(
                bound.input,
                (
                    None,
                    *(
                        None if low != high else high
                        for low, high in zip(decode[bound.input].min[1:], decode[bound.input].max[1:], strict=True)
                    ),
                ),
                runner.dtypes[bound.input],
            )
            for bound in self._layout.past
        ]
        self._past: list[np.ndarray] = []

    def __call__(self, tokens: np.ndarray, mask: np.ndarray, *, keep: bool) -> np.ndarray:
        """Run one step; see :class:`Decoder`."""
        begins = mask.shape[1] == tokens.shape[1]
        if begins:
            self._past = [cache.empty(tokens.shape[0]) for cache in self._caches]
        feed = step_feed(tokens, mask)
        inputs = {name: feed[name].astype(self._runner.dtypes[name], copy=False) for name in self._layout.plain}
        inputs |= {cache.name: past for cache, past in zip(self._caches, self._past, strict=True)}
        profile = self._layout.prefill if begins else self._layout.decode
        logits, *self._past = self._runner.run(profile, inputs, (self._logits, *(self._present if keep else ())))
        return checked(self.name, logits, tokens)

    def close(self) -> None:
        """Free the engine."""
        self._past = []
        self._runner.close()


class PolygraphyRunner:
    """polygraphy's TrtRunner: one context whose profile changes, inputs copied to the GPU for every call."""

    def __init__(self, path: Path, record: EngineArtifact) -> None:
        trt = find_flavour(record.flavour).module()
        with needs("trt-rtx" if record.flavour == "tensorrt-rtx" else "tensorrt", "running an engine"):
            from polygraphy.backend.common import BytesFromPath
            from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        self._runner: Any = TrtRunner(EngineFromBytes(BytesFromPath(str(path))))
        self._profile = -1
        with silent_polygraphy():
            try:
                self._runner.activate()
            except Exception as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RefusedError(
                    f"{path}: the engine cannot be loaded ({first}); build it on this machine"
                ) from error
        engine = self._runner.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.outputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
        self.dtypes = {name: trt.nptype(engine.get_tensor_dtype(name)) for name in names}

    def run(self, profile: int, inputs: dict[str, np.ndarray], wanted: tuple[str, ...]) -> list[np.ndarray]:
        """Run once; only what is wanted is copied back."""
        with silent_polygraphy():
            if profile != self._profile:
                self._runner.set_profile(profile)
                self._profile = profile
            arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
            outputs = self._runner.infer(arrays, check_inputs=False, copy_outputs_to_host=False)
            return [np.asarray(outputs[name].numpy()) for name in wanted]

    def close(self) -> None:
        """Free the engine and its memory."""
        with silent_polygraphy():
            self._runner.deactivate()


def load_engine(path: Path, record: EngineArtifact) -> EngineRunner:
    """Load an engine that :func:`check_engine` has passed.

    Raises:
        RefusedError: TensorRT cannot load it, for instance because it was built for another GPU.
    """
    return PolygraphyRunner(path, record)
