"""Profiles that a user writes: bounds of single inputs in place of those made from the graph, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatenorm_export.building.graph_inputs import Inputs, Length
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.small_files import parse_json, read_small

Shape = tuple[int, ...]
Bounds = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input -> its least, typical and largest shape."""
Overrides = Mapping[str, Bounds]
"""Profile -> the inputs that the user gave bounds to."""

LARGEST_LENGTH = 2**31 - 1
"""TensorRT's dimensions are 32 bits wide where profiles and bindings give them."""

KINDS = ("min", "opt", "max")
_FORM = '{"decode": {"input_ids": {"min": [1, 1], "opt": [1, 1], "max": [8, 1]}}}'


def load_overrides(path: Path) -> Overrides:
    """Read a profile file: profile -> input -> {"min": [..], "opt": [..], "max": [..]}.

    ``prefill`` and ``decode`` are those that are made from the graph, and keep their other inputs' bounds; any other
    name is a further profile.

    Raises:
        InputError: the file cannot be read, is not of this form, or has a length that TensorRT cannot count to.
    """
    found = parse_json(
        read_small(path),
        lambda reason: InputError(f"{path}: {reason}; a profile file looks like {_FORM}"),
        unique=True,
    )
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: names no profile; a profile file looks like {_FORM}")
    overrides: dict[str, Bounds] = {}
    for name, inputs in found.items():
        if not isinstance(inputs, dict) or not inputs:
            raise InputError(f"{path}: profile {name}: names no input; a profile file looks like {_FORM}")
        overrides[name] = {entry: _bounds(f"{path}: profile {name}: {entry}", value) for entry, value in inputs.items()}
    return overrides


def _bounds(where: str, value: Any) -> tuple[Shape, Shape, Shape]:
    if not isinstance(value, dict) or set(value) != set(KINDS):
        raise InputError(f"{where}: give min, opt and max, and nothing else, as in {_FORM}")
    shapes = []
    for kind in KINDS:
        shape = value[kind]
        # A boolean is an int in Python; JSON's true is no length.
        if not isinstance(shape, list) or any(type(length) is not int for length in shape):
            raise InputError(f"{where}: {kind} is a list of whole numbers, one a dimension, such as [1, 16]")
        for axis, length in enumerate(shape):
            if length > LARGEST_LENGTH:
                raise InputError(
                    f"{where}: {kind} is {length:,} in dimension {axis}; TensorRT counts to {LARGEST_LENGTH:,}"
                )
        shapes.append(tuple(shape))
    return shapes[0], shapes[1], shapes[2]


def check_bounds(where: str, inputs: Inputs, entry: str, bounds: tuple[Shape, Shape, Shape]) -> None:
    """Hold bounds against what the graph says of the input.

    Raises:
        RefusedError: no such input, another rank, a fixed dimension, or bounds that do not rise.
    """
    if entry not in inputs:
        raise RefusedError(f"{where}: the graph has no input {entry}; its inputs are {_some(inputs)}")
    shape = inputs[entry]
    for kind, bound in zip(KINDS, bounds, strict=True):
        if len(bound) != len(shape):
            raise RefusedError(
                f"{where}: {kind} of input {entry} has {len(bound)} dimensions, and the graph's has {len(shape)}"
            )
        for axis, (length, value) in enumerate(zip(shape, bound, strict=True)):
            if length.fixed is not None and length.fixed != value:
                raise RefusedError(
                    f"{where}: {kind} of input {entry} is {value} in dimension {axis}, which the graph fixes to "
                    f"{length.fixed}"
                )
    for axis, (least, typical, most) in enumerate(zip(*bounds, strict=True)):
        if not 0 <= least <= typical <= most:
            raise RefusedError(
                f"{where}: dimension {axis} of input {entry} has min {least}, opt {typical}, max {most}; these must "
                "rise, from 0 or more"
            )


def check_sums(
    where: str,
    entry: str,
    shape: tuple[Length, ...],
    kind: int,
    bounds: tuple[Shape, Shape, Shape],
    known: Mapping[str, int],
) -> Shape:
    """The given shape, if sums in it (a mask's past + step) are what the other inputs' lengths add up to.

    Raises:
        RefusedError: they are not.
    """
    for axis, (length, given) in enumerate(zip(shape, bounds[kind], strict=True)):
        value = length.value(known)
        if value is not None and value != given:
            raise RefusedError(
                f"{where}: {KINDS[kind]} of input {entry} is {given} in dimension {axis}, which is {length.text} and "
                f"by the other inputs {value}; leave it out, or change the others"
            )
    return bounds[kind]


def _some(names: Mapping[str, object]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
