"""How many heads a value of an attention holds: the axis of heads, followed back to where the heads were split.

The product of scores has its heads in one place, [batch, heads, tokens, size], but behind a Transpose they stand
elsewhere, and where batch or tokens have a fixed length no number tells by itself what it counts. Axes are numbered
from the last, -1, as broadcasting aligns them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import onnx_ir as ir

from graph_passes.known_lengths import BY_ELEMENT, KnownLengths, data_of, length_at, longest, whole_numbers
from graph_passes.operators import ATTENTION_OPERATORS, LAYOUT_STEPS, PRODUCTS, operator_of
from graph_passes.sites import AttentionCore

_KEEPING = frozenset(
    {
        *BY_ELEMENT,
        *("Expand", "Tile", "QuantizeLinear", "DequantizeLinear", "RotaryEmbedding", "GemmaRotaryEmbedding"),
        *("ScatterElements", "TensorScatter"),
    }
)
"""Operators that leave the axes of each operand that carries data where they are, counted from the last."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The axis of heads. It is ``shared`` where the batch stands in front of them in it, or their size behind them."""

    axis: int
    shared: bool = False


class HeadCounter:
    """Counts heads of values in one sublayer; nothing is followed beyond ``stream``. Shapes must have been inferred."""

    def __init__(self, stream: ir.Value | None, lengths: KnownLengths) -> None:
        self._stream = stream
        self._counts: dict[tuple[ir.Value, Place], int | None] = {}
        self._lengths = lengths

    def of_operand(self, core: AttentionCore, value: ir.Value) -> int | None:
        """The different heads of a core's query, key or value; None where the graph does not tell."""
        place = self._at_core(core, value)
        grouped = place is not None and place.axis < -3 and value is core.query
        return None if place is None or grouped else self.of(value, place)

    def at_core(self, core: AttentionCore, value: ir.Value) -> int | None:
        """The heads of an operand or of the result as they stand there: shared ones are repeated, or not yet."""
        place, lengths = self._at_core(core, value), self._lengths.of(value)
        if place is None or place.shared or lengths is None:
            return None
        if operator_of(core.node) in ATTENTION_OPERATORS or len(lengths) < 5:
            return length_at(lengths, place.axis)
        # [batch, key heads, query heads of each, tokens, size]
        groups = [length for length in lengths[1:-2] if length is not None]
        return math.prod(groups) if len(groups) == len(lengths) - 3 else None

    def of(self, value: ir.Value, place: Place) -> int | None:
        """The different heads along an axis of a value: what is repeated counts once."""
        key = value, place
        if key not in self._counts:
            # A graph with a loop, which no valid one has, must not end in one here.
            self._counts[key] = None
            self._counts[key] = self._counted(value, place)
        return self._counts[key]

    def _at_core(self, core: AttentionCore, value: ir.Value) -> Place | None:
        lengths = self._lengths.of(value)
        if operator_of(core.node) in ATTENTION_OPERATORS:
            # [batch, heads, tokens, size], [batch, tokens, heads, 2 or 3, size], or all heads side by side.
            return Place(-3) if lengths is not None and len(lengths) > 3 else Place(-1, shared=True)
        reads, position = _product_with(core, value)
        if reads is not None and reads.op_type == "Einsum":
            return _in_einsum(reads, position)
        rank = 4 if lengths is None else len(lengths)
        # With three axes batch and heads share the first.
        return Place(1 - rank) if rank > 3 else Place(-3, shared=True) if rank == 3 else None

    def _counted(self, value: ir.Value, place: Place) -> int | None:
        own = None if place.shared else length_at(self._lengths.of(value), place.axis)
        node = value.producer()
        if value is self._stream or node is None or node.op_type not in LAYOUT_STEPS:
            return own
        if node.op_type == "Reshape":
            before, split = self._before_reshape(node, value, place)
            behind = split if before is None else self.of(data_of(node), before)
        else:
            behind = self._most(self._before(node, value, place, own))
        # Where heads are repeated on the way there are fewer behind.
        return own if behind is None else behind if own is None else min(own, behind)

    def _most(self, parts: Iterable[tuple[ir.Value, Place]]) -> int | None:
        """Of values that are put together, such as with a table that is spread over the heads."""
        counts = [self.of(*part) for part in parts]
        return longest(counts, whole=bool(counts))

    def _before(self, node: ir.Node, value: ir.Value, place: Place, own: int | None) -> list[tuple[ir.Value, Place]]:
        """The operands of a node that hold the same heads, and where."""
        operands = [operand for operand in node.inputs[LAYOUT_STEPS[node.op_type]] if operand is not None]
        axis, rank = place.axis, self._lengths.rank(value)
        if rank is not None and rank < -axis:
            return []
        if node.op_type in _KEEPING:
            ranks = [self._lengths.rank(operand) for operand in operands]
            return [
                (operand, place)
                for operand, rank in zip(operands, ranks, strict=True)
                if rank is None or rank >= -place.axis
            ]
        if node.op_type in {"Unsqueeze", "Squeeze", "Gather", "Transpose"}:
            moved = self._moved(node, rank, axis, own)
            return [] if moved is None else [(operands[0], dataclasses.replace(place, axis=moved))]
        if node.op_type in {"Concat", "Split"} and rank is not None:
            cut = node.attributes.get_int("axis", 0) % rank - rank
            return [] if cut == axis else [(operand, place) for operand in operands]
        if node.op_type == "Slice" and rank is not None:
            axes = whole_numbers(node, "axes", 3)
            return [] if axes is None or axis in {cut % rank - rank for cut in axes} else [(operands[0], place)]
        return []

    def _moved(self, node: ir.Node, rank: int | None, axis: int, own: int | None) -> int | None:
        """Where the operand of a node that moves axes has this one; None where it has it not."""
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", None) or tuple(reversed(range(rank or 0)))
            return order[axis] - len(order) if len(order) >= -axis else None
        if rank is None:
            return None
        place = rank + axis
        if node.op_type == "Gather":
            before, indices = self._lengths.rank(data_of(node)), self._lengths.rank(data_of(node, 1))
            if not before or indices is None:
                return None
            at = node.attributes.get_int("axis", 0) % before
            if at <= place < at + indices:
                # Heads that are taken by their numbers.
                return at - before if indices == 1 and own is not None else None
            return (place if place < at else place - indices + 1) - before
        axes = whole_numbers(node, "axes", 1)
        if axes is None:
            return None
        if node.op_type == "Unsqueeze":
            added = {at % rank for at in axes}
            return None if place in added else axis + sum(at > place for at in added)
        before = rank + len(axes)
        left = [at for at in range(before) if at not in {gone % before for gone in axes}]
        return left[place] - before

    def _before_reshape(self, node: ir.Node, value: ir.Value, place: Place) -> tuple[Place | None, int | None]:
        """Where the operand has the heads; or, where they are split here, how many that gives."""
        after, before = self._lengths.of(value), self._lengths.of(data_of(node))
        if after is None or len(after) < -place.axis:
            return None, None
        axis, rank = place.axis, None if before is None else len(before)
        if not place.shared and (rank is None or rank == len(after) + axis + 1):
            width, sizes = self._lengths.width(data_of(node)), [length for length in after[axis + 1 :] if length]
            fits = width is not None and len(sizes) == -axis - 1 and width % math.prod(sizes) == 0
            return None, width // math.prod(sizes) if width is not None and fits else None
        if before is not None and rank == len(after):
            same = place.shared or None in {before[axis], after[axis]} or before[axis] == after[axis]
            return place if same else None, None
        if before is None or rank != len(after) + 1:
            return None, None
        if place.shared:
            # Heads stand before their size, and behind the batch.
            return {-1: Place(-2), -3: Place(-3)}.get(axis), None
        outer, inner = before[axis - 1], before[axis]
        # Either heads are merged with what repeats them, or axes elsewhere with each other.
        stays = after[axis] is not None and inner == after[axis] and outer not in {1, after[axis]}
        return Place(axis if stays else axis - 1), None


def _product_with(core: AttentionCore, value: ir.Value) -> tuple[ir.Node | None, int]:
    """The product that reads an operand of a core, and where; or that gives its result, with -1."""
    result = core.output.producer()
    if value is core.output:
        return result, -1
    others = {core.query, core.key} if value is not core.value else {core.value}
    for node in value.consumers():
        positions = PRODUCTS.get(operator_of(node))
        if positions is not None and (node is result if value is core.value else others <= set(node.inputs)):
            return node, list(node.inputs).index(value)
    return None, 0


def _in_einsum(node: ir.Node, position: int) -> Place | None:
    """The axis of the index of heads: with the batch it is in both factors and in the result, and it comes last."""
    factors, _, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    terms = [*factors.split(","), result]
    shared = [index for index in terms[0] if all(index in term for term in terms)]
    if len(terms) != 3 or len(shared) != 2 or "." in factors:
        return None
    term = terms[position]
    return Place(term.index(shared[-1]) - len(term))
