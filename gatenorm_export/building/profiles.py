"""Optimisation profiles made from a graph's own inputs: one for prefill, one for decode."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records import Profile, ProfileBounds

_TOKENS = "input_ids"


@dataclasses.dataclass(frozen=True)
class ShapeRequest:
    """The largest batch, the longest prompt, and the longest context (cache and new tokens), in tokens."""

    batch: int = 1
    prompt: int = 512
    context: int = 2048

    def __post_init__(self) -> None:
        if self.batch < 1 or self.prompt < 1 or self.context < 2:
            raise InputError(
                f"profile bounds of batch {self.batch}, prompt {self.prompt}, context {self.context} are too small; "
                "batch and prompt start at 1, context at 2"
            )
        if self.prompt > self.context:
            raise InputError(f"a prompt of {self.prompt} tokens does not fit a context of {self.context}")


def make_profiles(graph: Path, request: ShapeRequest) -> tuple[Profile, Profile]:
    """Profiles ``prefill`` (empty cache, 1 to ``prompt`` tokens) and ``decode`` (1 token, 1 to ``context`` - 1 cached).

    Every dynamic length of every input gets its bounds by what it is called: the token input [b, s] names batch and
    step, a cache input [b, heads, p, size] names the past, and sums of these are added up.

    Raises:
        RefusedError: a dynamic length cannot be told; polygraphy would quietly make it 1.
    """
    inputs = _input_shapes(graph)
    batch, step, pasts = _symbols(graph, inputs)
    top = request.batch
    prefill = (
        {batch: 1, step: 1} | dict.fromkeys(pasts, 0),
        {batch: top, step: max(request.prompt // 2, 1)} | dict.fromkeys(pasts, 0),
        {batch: top, step: request.prompt} | dict.fromkeys(pasts, 0),
    )
    decode = (
        {batch: 1, step: 1} | dict.fromkeys(pasts, 1),
        {batch: top, step: 1} | dict.fromkeys(pasts, max(request.context // 2, 1)),
        {batch: top, step: 1} | dict.fromkeys(pasts, request.context - 1),
    )
    return _profile(graph, "prefill", inputs, prefill), _profile(graph, "decode", inputs, decode)


Shape = tuple[int | str, ...]
"""One entry a dimension: a fixed length, or the name of a dynamic one ("" where it has none)."""


def _input_shapes(graph: Path) -> dict[str, Shape]:
    import onnx

    try:
        model = onnx.load(str(graph), load_external_data=False)
    except Exception as error:
        raise InputError(f"{graph}: not a readable ONNX file ({type(error).__name__}); export it again") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        entry.name: tuple(_length(dimension) for dimension in entry.type.tensor_type.shape.dim)
        for entry in model.graph.input
        if entry.name not in weights
    }


def _length(dimension: Any) -> int | str:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else str(dimension.dim_param)


def _symbols(graph: Path, inputs: Mapping[str, Shape]) -> tuple[str, str, set[str]]:
    tokens = inputs.get(_TOKENS)
    if tokens is None or len(tokens) != 2:
        raise RefusedError(f"{graph}: has no token input {_TOKENS} [batch, step] to make profiles from")
    batch, step = (str(length) for length in tokens)
    pasts = {
        length
        for shape in inputs.values()
        if len(shape) > 2
        for length in shape
        if isinstance(length, str) and length not in {"", batch, step}
    }
    # A graph without any cache left still has a mask of length past + step.
    for shape in inputs.values():
        for length in shape:
            terms = _terms(length) if isinstance(length, str) else []
            if step in terms:
                pasts |= {term for term in terms if not term.isdigit()} - {batch, step}
    return batch, step, pasts


def _terms(length: str) -> list[str]:
    """The summands of a symbolic length such as "past + step"."""
    return [term.strip() for term in length.split("+")]


def _profile(
    graph: Path, name: str, inputs: Mapping[str, Shape], lengths: tuple[dict[str, int], dict[str, int], dict[str, int]]
) -> Profile:
    bounds = []
    for entry, shape in inputs.items():
        low, typical, high = (
            tuple(_value(graph, entry, axis, length, known) for axis, length in enumerate(shape)) for known in lengths
        )
        bounds.append(ProfileBounds(input=entry, min=low, opt=typical, max=high))
    return Profile(name=name, bounds=tuple(bounds))


def _value(graph: Path, entry: str, axis: int, length: int | str, known: Mapping[str, int]) -> int:
    if isinstance(length, int):
        return length
    total = 0
    for term in _terms(length):
        if term.isdigit():
            total += int(term)
        elif term in known:
            total += known[term]
        else:
            raise RefusedError(
                f"{graph}: dimension {axis} of input {entry} is {length or 'dynamic without a name'}, which is neither "
                "batch, step nor past; no bound can be given to it"
            )
    return total
