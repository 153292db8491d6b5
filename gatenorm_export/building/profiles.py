"""Optimisation profiles made from a graph's own inputs: one for prefill, one for decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gatenorm_export.building.decoder_lengths import in_one_vocabulary
from gatenorm_export.building.graph_inputs import TOKENS, Inputs, Length, read_inputs
from gatenorm_export.building.profile_files import LARGEST_LENGTH, Bounds, Overrides, Shape, check_bounds, check_sums
from gatenorm_export.building.reach import DECODE, PREFILL
from gatenorm_export.building.shapes import ShapeRequest, context_limit, settle_shapes
from gatenorm_export.errors import RefusedError
from gatenorm_export.progress import Progress
from gatenorm_export.records import Profile, ProfileBounds


def make_profiles(
    graph: Path, request: ShapeRequest, overrides: Overrides | None = None, progress: Progress | None = None
) -> tuple[Profile, ...]:
    """Profiles ``prefill`` and ``decode``, with bounds of every input, and those that ``overrides`` add.

    Every dynamic length gets its bounds by what it is called (:func:`in_one_vocabulary`): the token input [b, s] names
    batch and step, a cache input [b, heads, p, size] names the past, and sums of these are added up. What they admit,
    in tokens:

    - prefill: a step of 1 to ``prompt`` onto a cache of 0 to ``context`` - ``prompt``, so that a prompt may also be fed
      in pieces; typical is half a prompt onto an empty cache;
    - decode: a step of 1 to ``decode_step`` onto a cache of 1 to ``context`` - 1; typical is one token onto half.

    Bounds belong to one input each, and the largest of a profile agree with each other. So the mask of the decode
    profile goes up to ``context`` - 1 + ``decode_step``: a step of one token reaches ``context``, and a longer one that
    would pass it is for the client to leave out.

    Prompt and context that the request leaves open follow from what the model takes (:func:`settle_shapes`), which
    ``progress`` is told. Bounds that ``overrides`` give to an input also hold for the same lengths of the inputs that
    they do not name.

    Raises:
        InputError: not an ONNX file.
        RefusedError: a dynamic length cannot be told (polygraphy would quietly make it 1), there is no position in the
            model's table for a token that is asked for, or the overrides contradict the graph: an unknown input,
            another rank, a fixed dimension, min > opt or opt > max, or two bounds for one length.
    """
    inputs, pasts = in_one_vocabulary(graph, read_inputs(graph))
    overrides = overrides or {}
    profiles: dict[str, tuple[Mapping[str, int], ...]] = {}
    if TOKENS in inputs and len(inputs[TOKENS]) == 2:
        pasts |= _summands(inputs, inputs[TOKENS][1].name) - {length.name for length in inputs[TOKENS]}
        profiles = _decoder_lengths(inputs, pasts, settle_shapes(graph, request, progress))
    elif not overrides:
        raise RefusedError(
            f"{graph}: has no token input {TOKENS} [batch, step] to make profiles from; give the bounds of its inputs "
            f"({', '.join(inputs)}) with --profile"
        )
    names = dict.fromkeys((*profiles, *overrides))
    nothing: Bounds = {}
    made = tuple(
        _profile(graph, name, inputs, profiles.get(name, ({}, {}, {})), overrides.get(name, nothing)) for name in names
    )
    if profiles:
        _check_table(graph, inputs, pasts, [profile for profile in made if profile.name in overrides])
    return made


def _decoder_lengths(
    inputs: Inputs, pasts: frozenset[str], request: ShapeRequest
) -> dict[str, tuple[Mapping[str, int], ...]]:
    """Each profile's least, typical and largest lengths by name."""
    batch, step = (length.name for length in inputs[TOKENS])
    prompt, context = request.prompt, request.context
    assert prompt is not None
    assert context is not None
    top, half = request.batch, max(prompt // 2, 1)

    def lengths(n: int, s: int, past: int) -> Mapping[str, int]:
        plain = {name: value for name, value in ((batch, n), (step, s)) if name is not None}
        return plain | dict.fromkeys(pasts, past)

    return {
        PREFILL: (
            lengths(1, 1, 0),
            lengths(top, half, 0),
            lengths(top, prompt, context - prompt),
        ),
        DECODE: (
            lengths(1, 1, 1),
            lengths(top, 1, max(context // 2, 1)),
            lengths(top, request.decode_step, context - 1),
        ),
    }


def _summands(inputs: Inputs, step: str | None) -> frozenset[str]:
    """What is added to the step: a graph without any cache left still has a mask of length past + step."""
    lengths = (length for shape in inputs.values() for length in shape)
    return frozenset(
        name for length in lengths if step in length.names and length.name is None for name in length.names
    )


def _check_table(graph: Path, inputs: Inputs, pasts: frozenset[str], given: Sequence[Profile]) -> None:
    """Refuse bounds of the user's own by which every step, or every cache, may lead beyond a table of positions.

    Raises:
        RefusedError: they do.
    """
    limit = context_limit(graph) if given else None
    if limit is None or not limit.table:
        return
    for profile in given:
        bounds = {bound.input: bound for bound in profile.bounds}
        least, most = bounds[TOKENS].min[1], bounds[TOKENS].max[1]
        cached = 0
        for entry, shape in inputs.items():
            for length, high in zip(shape, bounds[entry].max, strict=True):
                if length.name in pasts:
                    cached = max(cached, high)
                elif length.name is None and pasts & set(length.names):
                    # A mask, past + step.
                    cached = max(cached, high - most)
        if max(least + cached, most) > limit.tokens:
            raise RefusedError(
                f"{graph}: profile {profile.name}: a step of {least:,} to {most:,} tokens onto a cache of up to "
                f"{cached:,} is too long: {limit}; give smaller bounds"
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
        _check_size(where, entry, most)
        made.append(ProfileBounds(input=entry, min=least, opt=typical, max=most))
    return Profile(name=name, bounds=tuple(made))


def _check_size(where: str, entry: str, most: Shape) -> None:
    for axis, length in enumerate(most):
        if length > LARGEST_LENGTH:
            raise RefusedError(
                f"{where}: dimension {axis} of input {entry} goes up to {length:,}; TensorRT counts to "
                f"{LARGEST_LENGTH:,}, ask for less"
            )


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
