"""How far a prepared graph is from its source: both in ONNX Runtime on the CPU, on the same random inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatenorm_export.memory import free_memory
from gatenorm_export.records import ConversionCheck, OutputDifference
from gatenorm_export.sessions import cpu_options

Array = NDArray[Any]

BATCH, PROMPT, PADDING, DECODE_STEPS = 2, 9, 3, 3
"""A prompt of two rows, the first of which begins with padding, and tokens one at a time onto the cache."""

# Lengths that a graph leaves open and no name tells: an image's sides, a sound's frames, a text that is attended to.
_IMAGE, _CHANNELS, _FRAMES, _TEXT = 224, 3, 3000, 12
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
# ONNX Runtime holds the weights, and packed copies of many.
_MEMORY_FACTOR = 2.5


class CannotMeasure(Exception):
    """The comparison cannot be made here; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class Caches:
    """Cache inputs with the output that takes the place of each in the next step (None: it stays), all cache outputs,
    and the sizes of a head where inputs leave them open."""

    past: Mapping[str, str | None]
    present: tuple[str, ...]
    sizes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class _Answer:
    outputs: dict[str, Array]
    visible: NDArray[np.bool_]
    """[batch, past + step]: which positions are no padding."""
    step: int


def measure(
    source: Path, prepared: Path, *, caches: Caches, vocabulary: int, weight_bytes: int, how: str
) -> ConversionCheck:
    """Run both graphs, one after the other, through a prompt and tokens onto the cache, each with its own cache.

    Raises:
        CannotMeasure: memory is short, an input is unknown, or the runtime does not take a graph.
    """
    needed, free = int(weight_bytes * _MEMORY_FACTOR), free_memory()
    # Where the system does not tell, the attempt does.
    if free is not None and needed > free:
        raise CannotMeasure(f"running it takes about {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB are free")
    expected = _run(source, caches, vocabulary)
    found = _run(prepared, caches, vocabulary)
    steps = ("prompt", *(f"decode {index + 1}" for index in range(len(expected) - 1)))
    return ConversionCheck(how=how, steps=steps, outputs=tuple(_differences(expected, found, caches)))


def _differences(expected: Sequence[_Answer], found: Sequence[_Answer], caches: Caches) -> Iterator[OutputDifference]:
    worst: OutputDifference | None = None
    for name in expected[0].outputs:
        pairs = [(_seen(name, a, caches), _seen(name, b, caches)) for a, b in zip(expected, found, strict=True)]
        wanted = np.concatenate([pair[0] for pair in pairs])
        got = np.concatenate([pair[1] for pair in pairs])
        if not wanted.size:
            continue
        difference = float(np.max(np.abs(wanted - got)))
        span = float(np.max(wanted) - np.min(wanted))
        entry = OutputDifference(
            output=name, max_abs=difference, range=span, relative=difference / span if span else difference
        )
        if name not in caches.present:
            yield entry
        elif worst is None or not entry.relative <= worst.relative:
            worst = entry.model_copy(update={"output": "cache"})
    if worst is not None:
        yield worst


def _seen(name: str, answer: _Answer, caches: Caches) -> Array:
    """An output's numbers as float64, without those of padding: what a model computes there is nobody's business."""
    array = answer.outputs[name].astype(np.float64)
    batch, total = answer.visible.shape
    if name in caches.present and array.ndim == 4 and array.shape[0] == batch and array.shape[2] >= total:
        return array[:, :, :total].transpose(0, 2, 1, 3)[answer.visible].reshape(-1)
    if array.ndim >= 3 and array.shape[:2] == (batch, answer.step):
        return array[answer.visible[:, -answer.step :]].reshape(-1)
    return array.reshape(-1)


def _run(graph: Path, caches: Caches, vocabulary: int) -> list[_Answer]:
    import onnxruntime

    options = cpu_options()
    # Every operator by itself on both sides: fusions would compute over the roundings that are to be measured.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return _steps(session, caches, vocabulary)
    except CannotMeasure:
        raise
    except Exception as error:
        # onnxruntime's exceptions share no base class below Exception.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CannotMeasure(f"ONNX Runtime on the CPU does not run it: {first[:300]}") from error


def _steps(session: Any, caches: Caches, vocabulary: int) -> list[_Answer]:
    rng = np.random.default_rng(0)
    inputs = {entry.name: entry for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]
    steps = [PROMPT, *[1] * DECODE_STEPS] if caches.past else [PROMPT]
    lengths = [entry.shape[1] for name, entry in inputs.items() if name.endswith("input_ids") and len(entry.shape) == 2]
    if lengths and isinstance(lengths[0], int):
        steps = [lengths[0]] * len(steps)
    tokens = rng.integers(0, vocabulary, (BATCH, sum(steps)))
    mask = np.ones_like(tokens)
    if any("mask" in name for name in inputs):
        mask[0, :PADDING] = 0
    fixed = {
        name: rng.normal(size=_float_shape(entry)).astype(np.float32)
        for name, entry in inputs.items()
        if entry.type in _FLOATS and name not in caches.past
    }
    state = {
        name: _cache(rng, inputs[name], caches.sizes.get(name, 0), 0 if grows else _TEXT)
        for name, grows in caches.past.items()
    }
    answers, seen = [], 0
    for step in steps:
        feed = {name: array.astype(_FLOATS[inputs[name].type]) for name, array in fixed.items()}
        feed |= state
        for name, entry in inputs.items():
            if name not in feed:
                feed[name] = _integers(entry, tokens, mask, seen, step)
        results = dict(zip(names, session.run(names, feed), strict=True))
        seen += step
        state |= {past: results[now] for past, now in caches.past.items() if now is not None}
        answers.append(_Answer(results, mask[:, :seen].astype(bool), step))
    return answers


def _integers(entry: Any, tokens: Array, mask: Array, seen: int, step: int) -> Array:
    if entry.type not in _INTEGERS:
        raise CannotMeasure(f"input {entry.name} is {entry.type}")
    upto, name = mask[:, : seen + step], entry.name.lower()
    if name.endswith("attention_mask") or name in {"mask", "input_mask"}:
        array = upto
    elif "position_ids" in name:
        array = np.maximum(upto.cumsum(axis=1) - 1, 0)[:, seen:]
    elif name in {"token_type_ids", "segment_ids"}:
        array = np.zeros((BATCH, step))
    elif name == "cache_position":
        array = np.arange(seen, seen + step)
    elif name.endswith("input_ids") or name in {"tokens", "input"}:
        array = tokens[:, seen : seen + step]
    else:
        raise CannotMeasure(f"nothing is known to feed to input {entry.name}")
    if array.ndim != len(entry.shape):
        raise CannotMeasure(f"input {entry.name} has {len(entry.shape)} axes")
    return np.ascontiguousarray(array.astype(_INTEGERS[entry.type]))


def _float_shape(entry: Any) -> tuple[int, ...]:
    """Images [batch, channels, height, width], sounds [batch, bins, frames], states [batch, length, width].

    Of any other number of axes only the first, which is the batch, may be open.
    """
    if "mask" in entry.name:
        raise CannotMeasure(f"nothing is known to feed to input {entry.name}")
    unknown = [axis for axis, length in enumerate(entry.shape) if not isinstance(length, int)]
    openings = {4: (BATCH, _CHANNELS, _IMAGE, _IMAGE), 3: (BATCH, _TEXT, _FRAMES)}.get(len(entry.shape), (BATCH,))
    if len(entry.shape) == 3 and unknown[-2:] == [1, 2]:
        # A length may be any, a width may not, and here it is the last.
        openings = openings[:2]
    for axis in unknown:
        if axis >= len(openings):
            raise CannotMeasure(f"nothing tells how long axis {axis} of input {entry.name} is")
    return tuple(openings[axis] if axis in unknown else length for axis, length in enumerate(entry.shape))


def _cache(rng: np.random.Generator, entry: Any, size: int, length: int) -> Array:
    """A cache [batch, heads, length, size], or [batch, length, width], to begin with."""
    if entry.type not in _FLOATS:
        raise CannotMeasure(f"cache input {entry.name} is {entry.type}")
    known = [axis if isinstance(axis, int) else None for axis in entry.shape[1:]]
    if None not in known:
        raise CannotMeasure(f"cache input {entry.name} has a fixed length")
    if known[-1] is None:
        known[-1] = size
    shape = [BATCH, *(length if axis is None else axis for axis in known)]
    return rng.normal(size=shape).astype(_FLOATS[entry.type])
