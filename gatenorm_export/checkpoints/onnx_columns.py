"""Which outputs of which projections arrive where in an attention: relayouts followed with numbered columns.

Every output column of a projection gets a number, and the nodes between projection and attention are carried out on
those numbers with numpy, for one batch of one token where lengths are open: reshapes, transposes, splits and gathers
move them as they would move the values, whatever the exporter's way to lay out heads. Where a node mixes two columns,
as rotary embeddings do, the smaller and the larger number are kept. Biases, norms, scales and casts leave columns where
they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gatenorm_export.checkpoints.onnx_constants import whole_numbers
from gatenorm_export.checkpoints.onnx_lengths import measured
from gatenorm_export.checkpoints.onnx_projections import Projection, projection_of
from gatenorm_export.checkpoints.onnx_relayouts import (
    ARITHMETIC,
    MOST_ELEMENTS,
    PASSING,
    RELAYOUTS,
    SCATTERS,
    Untold,
    attribute,
)

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Columns:
    """A tensor whose elements are columns: ``low`` and ``high`` are equal where nothing was mixed."""

    low: np.ndarray
    high: np.ndarray


Known = Columns | np.ndarray | None
"""Columns, whole numbers that compute shapes, or None: anything else, such as masks, caches and rotary tables."""


class ColumnTracer:
    """Follows values back to projections; ``ends`` are values that nothing is followed beyond."""

    def __init__(self, ends: Sequence[ir.Value], varies: Callable[[ir.Value | None], bool]) -> None:
        self._known: dict[ir.Value, Known] = dict.fromkeys(ends)
        self._varies = varies
        self.projections: list[Projection] = []
        self._bases: list[int] = [0]
        self._lengths: dict[ir.Value, list[int] | None] = {}

    def columns(self, value: ir.Value) -> Columns | None:
        """The columns that a value holds; None where it holds none."""
        found = self._of(value)
        return found if isinstance(found, Columns) else None

    def source(self, column: int) -> tuple[int, int]:
        """The projection of a column, as its position in :attr:`projections`, and the column's number there."""
        index = int(np.searchsorted(self._bases, column, side="right")) - 1
        return index, column - self._bases[index]

    def _of(self, value: ir.Value | None) -> Known:
        if value is None:
            return None
        if value not in self._known:
            # A graph with a loop, which no valid one has, must not end in one here.
            self._known[value] = None
            self._known[value] = self._computed(value)
        return self._known[value]

    def _computed(self, value: ir.Value) -> Known:
        node = value.producer()
        if node is None or node.op_type == "Constant":
            return whole_numbers(value)
        if node.op_type == "Shape":
            return self._shape(node)
        if node.op_type == "ConstantOfShape":
            return self._filled(node)
        projection = projection_of(node, self._varies)
        if projection is not None:
            source = projection.data if value.shape is None else value
            lengths = (self._measured(source) if source is not None else None) or [1] * projection.rank
            lengths[projection.axis] = projection.width
            # Of lengths that lie there are no columns; where the heads are put together that is said.
            return self._numbered(projection, lengths) if 0 < math.prod(lengths) <= MOST_ELEMENTS else None
        if node.op_type in PASSING:
            # The second result of a norm or of a quantisation is a statistic.
            passed = self._of(node.inputs[PASSING[node.op_type]]) if value.index() == 0 else None
            return -passed if node.op_type == "Neg" and isinstance(passed, np.ndarray) else passed
        if node.op_type in SCATTERS:
            return self._of(node.inputs[SCATTERS[node.op_type]])
        if node.op_type == "Concat":
            return self._concatenated(node)
        if node.op_type in RELAYOUTS:
            return self._laid_out(node, value)
        if node.op_type in ARITHMETIC:
            return self._mixed(node)
        return None

    def _numbered(self, projection: Projection, lengths: list[int]) -> Columns:
        base = self._bases[-1]
        self.projections.append(projection)
        self._bases.append(base + projection.width)
        numbers = np.arange(base, base + projection.width, dtype=np.int64)
        own = [1] * len(lengths)
        own[projection.axis] = projection.width
        # Reshapes may hold a batch or a sequence of fixed length to its number.
        numbers = np.broadcast_to(numbers.reshape(own), lengths)
        return Columns(numbers, numbers)

    def _shape(self, node: ir.Node) -> np.ndarray:
        """Lengths that are not written down are batch and sequence, here 1; so are all where none is known."""
        value = node.inputs[0]
        found = self._known.get(value) if value is not None else None
        if isinstance(found, Columns):
            lengths = list(found.low.shape)
        else:
            lengths = (self._measured(value) if value is not None else None) or [1] * 8
        start, end = attribute(node, "start", 0), attribute(node, "end", None)
        return np.array(lengths[start:end], dtype=np.int64)

    def _measured(self, value: ir.Value) -> list[int] | None:
        """The lengths of a value, where its shape is not written down those of what it was computed from."""
        if value not in self._lengths:
            self._lengths[value] = measured(value, self._varies)
        found = self._lengths[value]
        return None if found is None else list(found)

    def _filled(self, node: ir.Node) -> Known:
        shape, value = self._of(node.inputs[0]), attribute(node, "value", None)
        if (
            not isinstance(shape, np.ndarray)
            or shape.size > 8
            or not 0 <= math.prod(map(int, shape.reshape(-1))) <= 1000
        ):
            return None
        return np.full(shape, 0 if value is None else int(value.numpy().reshape(-1)[0]), dtype=np.int64)

    def _laid_out(self, node: ir.Node, value: ir.Value) -> Known:
        data = self._of(node.inputs[0])
        if data is None:
            return None
        rest = [self._of(operand) for operand in node.inputs[1:]]
        numbers = [operand if isinstance(operand, np.ndarray) else None for operand in rest]
        given = [operand is not None for operand in node.inputs[1:]]
        try:
            if node.op_type == "Reshape" and isinstance(data, Columns) and numbers and numbers[0] is not None:
                data = _of_as_many_tokens(data, [int(length) for length in numbers[0]])
            return _each(data, lambda array: RELAYOUTS[node.op_type](node, array, numbers, given, value.index() or 0))
        except (Untold, ValueError, IndexError, TypeError, KeyError):
            # What cannot be followed is found to be missing where the heads are put together.
            return None

    def _concatenated(self, node: ir.Node) -> Known:
        parts = [self._of(operand) for operand in node.inputs]
        axis = attribute(node, "axis", 0)
        tracked = [part for part in parts if isinstance(part, Columns)]
        try:
            if tracked:
                # What else is appended is a cache, or constant such as attention sinks.
                return Columns(
                    np.concatenate([part.low for part in tracked], axis),
                    np.concatenate([part.high for part in tracked], axis),
                )
            if all(part is None for part in parts):
                return None
            # An unknown length among whole numbers is a batch or a sequence.
            numbers = [part if isinstance(part, np.ndarray) else np.ones(1, np.int64) for part in parts]
            return np.concatenate(numbers, axis)
        except ValueError:
            return None

    def _mixed(self, node: ir.Node) -> Known:
        operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
        parts = [self._of(operand) for operand in operands]
        tracked = [part for part in parts if isinstance(part, Columns)]
        try:
            if not tracked:
                return np.asarray(ARITHMETIC[node.op_type](node, [self._of(operand) for operand in node.inputs]))
            low, high = tracked[0].low, tracked[0].high
            if len(tracked) == 1:
                return tracked[0]
            for part in tracked[1:]:
                low, high = np.minimum(low, part.low), np.maximum(high, part.high)
            return Columns(low, high)
        except (Untold, ValueError, TypeError, ZeroDivisionError):
            return None


def _each(data: Columns | np.ndarray, move: Callable[[np.ndarray], np.ndarray]) -> Columns | np.ndarray:
    if isinstance(data, Columns):
        low = move(data.low)
        return Columns(low, low if data.high is data.low else move(data.high))
    # Numpy makes a bare number of a single element.
    return np.asarray(move(data))


def _of_as_many_tokens(data: Columns, target: list[int]) -> Columns:
    """The columns of one token, repeated where a Reshape takes more: all tokens have the same ones.

    Behind a Gemm, whose operand has batch and sequence in one axis, their number may be told by nothing else.
    """
    size, own = data.low.size, data.low.shape
    # 0 copies a length, and -1 is what is left.
    wanted = math.prod(length or own[axis] for axis, length in enumerate(target) if length >= 0)
    if own[-1] != size or wanted <= size or wanted % size or wanted > MOST_ELEMENTS:
        return data
    tokens = (wanted // size, size)
    low = np.broadcast_to(data.low.reshape(1, -1), tokens)
    return Columns(low, low if data.high is data.low else np.broadcast_to(data.high.reshape(1, -1), tokens))


def mixed_positions(low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """The columns of one head in the order of their positions, from numbers of length head_dim; None if untellable.

    Where two columns were mixed with each other into two positions, the smaller belongs to the first.
    """
    found = low.copy()
    pairs: dict[tuple[Any, Any], int] = {}
    for position in np.flatnonzero(low != high):
        key = (low[position], high[position])
        met = pairs[key] = pairs.get(key, 0) + 1
        found[position] = high[position] if met == 2 else low[position]
    if any(met != 2 for met in pairs.values()) or len(np.unique(found)) != len(found):
        return None
    return found
