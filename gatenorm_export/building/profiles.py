"""Optimisation profiles made from a graph's own inputs: one for prefill, one for decode."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from gatenorm_export.building.decoder_lengths import in_one_vocabulary
from gatenorm_export.building.graph_inputs import TOKENS, Inputs, Length, read_inputs
from gatenorm_export.building.profile_files import Bounds, Overrides, check_bounds, check_sums
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records import Profile, ProfileBounds

PREFILL, DECODE = "prefill", "decode"

SHARED_STEP = 2
"""The longest step of the decode profile. Of a step fixed to 1, TensorRT-RTX 1.7 lays the matrices out in another way
than for prefill and keeps both copies in the engine: 1,006.8 MB for SmolLM2-135M in fp32, where either profile alone
takes 560 MB. With a range of 1 to 2 both profiles share one copy: 582.4 MB."""


@dataclasses.dataclass(frozen=True)
class ShapeRequest:
    """The largest batch, the longest prompt, and the longest context (cache and new tokens), in tokens.

    ``decode_step`` is the longest step of the decode profile. ``SHARED_STEP`` is the least with which both profiles
    share the weights; 1 fixes the step, for kernels of one token, at the cost of a second copy of the matrices.
    """

    batch: int = 1
    prompt: int = 512
    context: int = 2048
    decode_step: int = SHARED_STEP

    def __post_init__(self) -> None:
        if self.batch < 1 or self.prompt < 1 or self.context < 2 or self.decode_step < 1:
            raise InputError(
                f"profile bounds of batch {self.batch}, prompt {self.prompt}, context {self.context}, decode step "
                f"{self.decode_step} are too small; batch, prompt and decode step start at 1, context at 2"
            )
        if self.prompt > self.context:
            raise InputError(f"a prompt of {self.prompt} tokens does not fit a context of {self.context}")
        if self.decode_step >= self.context:
            raise InputError(f"a decode step of {self.decode_step} tokens does not fit a context of {self.context}")


def make_profiles(graph: Path, request: ShapeRequest, overrides: Overrides | None = None) -> tuple[Profile, ...]:
    """Profiles ``prefill`` and ``decode``, with bounds of every input, and those that ``overrides`` add.

    Every dynamic length gets its bounds by what it is called (:func:`in_one_vocabulary`): the token input [b, s] names
    batch and step, a cache input [b, heads, p, size] names the past, and sums of these are added up. What they admit,
    in tokens:

    - prefill: a step of 1 to ``prompt`` onto a cache of 0 to ``context`` - ``prompt``, so that a prompt may also be fed
      in pieces; typical is half a prompt onto an empty cache;
    - decode: a step of 1 to ``decode_step`` onto a cache of 1 to ``context`` - 1; typical is one token onto half.

    Bounds that ``overrides`` give to an input also hold for the same lengths of the inputs that they do not name.

    Raises:
        InputError: not an ONNX file.
        RefusedError: a dynamic length cannot be told (polygraphy would quietly make it 1), or the overrides contradict
            the graph: an unknown input, another rank, a fixed dimension, min > opt or opt > max, or two bounds for one
            length.
    """
    inputs, pasts = in_one_vocabulary(graph, read_inputs(graph))
    overrides = overrides or {}
    profiles: dict[str, tuple[Mapping[str, int], ...]] = {}
    if TOKENS in inputs and len(inputs[TOKENS]) == 2:
        profiles = _decoder_lengths(inputs, pasts, request)
    elif not overrides:
        raise RefusedError(
            f"{graph}: has no token input {TOKENS} [batch, step] to make profiles from; give the bounds of its inputs "
            f"({', '.join(inputs)}) with --profile"
        )
    names = dict.fromkeys((*profiles, *overrides))
    nothing: Bounds = {}
    return tuple(
        _profile(graph, name, inputs, profiles.get(name, ({}, {}, {})), overrides.get(name, nothing)) for name in names
    )


def _decoder_lengths(
    inputs: Inputs, pasts: frozenset[str], request: ShapeRequest
) -> dict[str, tuple[Mapping[str, int], ...]]:
    """Each profile's least, typical and largest lengths by name."""
    batch, step = (length.name for length in inputs[TOKENS])
    pasts |= _summands(inputs, step) - {batch, step}
    top, half = request.batch, max(request.prompt // 2, 1)

    def lengths(n: int, s: int, past: int) -> Mapping[str, int]:
        plain = {name: value for name, value in ((batch, n), (step, s)) if name is not None}
        return plain | dict.fromkeys(pasts, past)

    return {
        PREFILL: (
            lengths(1, 1, 0),
            lengths(top, half, 0),
            lengths(top, request.prompt, request.context - request.prompt),
        ),
        DECODE: (
            lengths(1, 1, 1),
            lengths(top, 1, max(request.context // 2, 1)),
            lengths(top, request.decode_step, request.context - 1),
        ),
    }


def _summands(inputs: Inputs, step: str | None) -> frozenset[str]:
    """What is added to the step: a graph without any cache left still has a mask of length past + step."""
    lengths = (length for shape in inputs.values() for length in shape)
    return frozenset(
        name for length in lengths if step in length.names and length.name is None for name in length.names
    )


def _profile(graph: Path, name: str, inputs: Inputs, lengths: tuple[Mapping[str, int], ...], given: Bounds) -> Profile:
    known = [dict(entry) for entry in lengths]
    where = f"{graph}: profile {name}"
    told: dict[str, str] = {}
    for entry, bounds in given.items():
        check_bounds(where, inputs, entry, bounds)
        for axis, length in enumerate(inputs[entry]):
            if length.name is None:
                continue
            values = [bound[axis] for bound in bounds]
            if length.name in told and values != [place[length.name] for place in known]:
                raise RefusedError(
                    f"{where}: {length.text} is one length, and inputs {told[length.name]} and {entry} are given "
                    "different bounds for it; give them the same"
                )
            told[length.name] = entry
            for place, value in zip(known, values, strict=True):
                place[length.name] = value
    made = []
    for entry, shape in inputs.items():
        least, typical, most = (
            tuple(_value(where, entry, axis, length, place, given) for axis, length in enumerate(shape))
            if entry not in given
            else check_sums(where, entry, shape, kind, given[entry], place)
            for kind, place in enumerate(known)
        )
        made.append(ProfileBounds(input=entry, min=least, opt=typical, max=most))
    return Profile(name=name, bounds=tuple(made))


def _value(where: str, entry: str, axis: int, length: Length, known: Mapping[str, int], given: Bounds) -> int:
    value = length.value(known)
    if value is None:
        what = length.text or "dynamic without a name"
        why = "which no given bound tells" if given else "which is neither batch, step nor past"
        raise RefusedError(
            f"{where}: dimension {axis} of input {entry} is {what}, {why}; no bound can be given to it, write one into "
            "a file for --profile"
        )
    return value
