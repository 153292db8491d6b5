"""Lengths that a graph can still tell when a tensor is gone: from the shapes of its inputs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Length:
    """One dimension as a sum of input lengths and a constant: ``sum(sign * input.shape[axis]) + constant``."""

    terms: tuple[tuple[int, ir.Value, int], ...] = ()
    constant: int = 0

    def plus(self, other: Length, sign: int = 1) -> Length:
        """This length plus, or minus, another."""
        terms = tuple((sign * factor, value, axis) for factor, value, axis in other.terms)
        return Length((*self.terms, *terms), self.constant + sign * other.constant)


class InputLengths:
    """Named lengths of the inputs that stay, and what follows from sums among their names."""

    def __init__(self, inputs: Iterable[ir.Value]) -> None:
        self._known: dict[str, Length] = {}
        sums: list[tuple[list[str], int, Length]] = []
        for value in inputs:
            for axis, length in enumerate(value.shape or ()):
                if isinstance(length, int):
                    continue
                here = Length(((1, value, axis),))
                names, constant = _parse(str(length))
                if names is None:
                    continue
                if len(names) == 1 and constant == 0:
                    self._known.setdefault(names[0], here)
                else:
                    sums.append((names, constant, here))
        # A mask of length past + step tells the past where a token input tells the step.
        for names, constant, here in sums:
            unknown = [name for name in names if name not in self._known]
            if len(unknown) == 1 and names.count(unknown[0]) == 1:
                rest = Length(constant=constant)
                for name in names:
                    if name != unknown[0]:
                        rest = rest.plus(self._known[name])
                self._known[unknown[0]] = here.plus(rest, -1)

    def add(self, name: str, length: Length) -> None:
        """Tell one more name."""
        names, constant = _parse(name)
        if names is not None and len(names) == 1 and constant == 0:
            self._known.setdefault(names[0], length)

    def resolve(self, length: int | ir.SymbolicDim) -> Length | None:
        """A dimension in terms of the inputs, or None where they do not tell it."""
        if isinstance(length, int):
            return Length(constant=length)
        names, constant = _parse(str(length))
        if names is None:
            return None
        total = Length(constant=constant)
        for name in names:
            if name not in self._known:
                return None
            total = total.plus(self._known[name])
        return total

    def resolve_shape(self, shape: ir.Shape | None) -> tuple[Length, ...] | None:
        """A whole shape in terms of the inputs, or None."""
        if shape is None:
            return None
        lengths = [self.resolve(length) for length in shape]
        return None if None in lengths else tuple(length for length in lengths if length is not None)


def _parse(text: str) -> tuple[list[str] | None, int]:
    """The names and the constant of a sum such as "past + step + 1"; None for names of anything else."""
    names: list[str] = []
    constant = 0
    for term in text.split("+"):
        term = term.strip()
        if re.fullmatch(r"\d+", term):
            constant += int(term)
        elif re.fullmatch(r"[A-Za-z_][\w.]*", term) and term != "None":
            names.append(term)
        else:
            return None, 0
    return names, constant
