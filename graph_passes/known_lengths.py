"""Lengths of tensors, where no shape was inferred as far as the graph tells them by itself.

Shape inference knows nothing of com.microsoft's operators, nor of anything behind them; what a Reshape is given, a
weight and a bias still tell lengths there.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from graph_passes.operators import LAYOUT_STEPS, PRODUCTS, operator_of

Lengths = tuple[int | None, ...]
"""The lengths of a value; None for one that is not fixed."""

BY_ELEMENT = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Where", "Cast", "CastLike", "Identity"})
"""Operators whose results have the lengths that their operands broadcast to."""


class KnownLengths:
    """The lengths of the values of a graph, each found once. Shapes must have been inferred."""

    def __init__(self) -> None:
        self._lengths: dict[ir.Value, Lengths | None] = {}

    def of(self, value: ir.Value) -> Lengths | None:
        """The lengths of a value, where no shape was inferred those that what computes it tells."""
        if value not in self._lengths:
            self._lengths[value] = None
            self._lengths[value] = self._found(value)
        return self._lengths[value]

    def rank(self, value: ir.Value) -> int | None:
        """How many axes a value has."""
        lengths = self.of(value)
        return None if lengths is None else len(lengths)

    def width(self, value: ir.Value) -> int | None:
        """The last length, where no shape was inferred that of the weight or bias which it comes from."""
        width = length_at(self.of(value), -1)
        node = value.producer()
        if width is not None or node is None:
            return width
        if node.op_type == "MatMulNBits":
            return node.attributes.get_int("N", 0) or None
        operands = [operand for operand in node.inputs if operand is not None]
        if operator_of(node) in PRODUCTS and node.op_type != "Einsum":
            weight = self.of(data_of(node, PRODUCTS[operator_of(node)][1]))
            return length_at(weight, -2 if node.attributes.get_int("transB", 0) else -1)
        if node.op_type not in BY_ELEMENT:
            return None
        return longest([self.width(operand) for operand in operands])

    def _found(self, value: ir.Value) -> Lengths | None:
        node, shape = value.producer(), value.shape
        inferred = None if shape is None else tuple(length if isinstance(length, int) else None for length in shape)
        if node is not None and node.op_type == "Reshape":
            target = _target(node.inputs[1] if len(node.inputs) > 1 else None)
            # Inference errs over some branches of an If.
            if target is not None and (inferred is None or len(inferred) != len(target)):
                return tuple(length if (length or 0) > 0 else None for length in target)
        if inferred is not None or node is None:
            return inferred
        if node.op_type == "Transpose":
            order, before = node.attributes.get_ints("perm", None), self.of(data_of(node))
            if order is None or (before is not None and len(before) != len(order)):
                return None
            return tuple(None if before is None else before[axis] for axis in order)
        if node.op_type == "Unsqueeze":
            before, axes = self.of(data_of(node)), whole_numbers(node, "axes", 1)
            if before is None or axes is None:
                return None
            rest = iter(before)
            added = {axis % (len(before) + len(axes)) for axis in axes}
            return tuple(1 if axis in added else next(rest) for axis in range(len(before) + len(axes)))
        if node.op_type == "Expand":
            # A 1 may be spread.
            before = self.of(data_of(node))
            return None if before is None else tuple(None if length == 1 else length for length in before)
        if node.op_type not in {*BY_ELEMENT, "Concat"}:
            return None
        parts = [self.of(operand) for operand in node.inputs[LAYOUT_STEPS[node.op_type]] if operand is not None]
        known = [part for part in parts if part is not None]
        rank = max(map(len, known), default=0)
        # What is not known may have more axes than a factor of one or two.
        if rank == 0 or (rank < 3 and len(known) < len(parts)):
            return None
        whole = len(known) == len(parts)
        together = [
            longest([1 if len(part) < -axis else part[axis] for part in known], whole) for axis in range(-rank, 0)
        ]
        if node.op_type == "Concat":
            together[node.attributes.get_int("axis", 0) % rank] = None
        return tuple(together)


def data_of(node: ir.Node, index: int = 0) -> ir.Value:
    """An operand that must be there."""
    value = node.inputs[index]
    assert value is not None
    return value


def length_at(lengths: Lengths | None, axis: int) -> int | None:
    """The length of an axis, counted from the last; None where it is not known or there is no such axis."""
    return lengths[axis] if lengths is not None and len(lengths) >= -axis else None


def longest(lengths: list[int | None], whole: bool = False) -> int | None:
    """What lengths broadcast to. A 1 is spread over what is not known, unless the list is the ``whole`` of them."""
    most = max((length for length in lengths if length is not None), default=1)
    return most if most > 1 or (whole and None not in lengths) else None


def whole_numbers(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Whole numbers that older operator sets keep in an attribute and newer ones in an operand."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    return _constant(node.inputs[index] if index < len(node.inputs) else None)


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def _target(value: ir.Value | None) -> list[int | None] | None:
    """The lengths that a Reshape is given, as far as they are constant."""
    given = _constant(value)
    if given is not None:
        return list(given)
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Concat":
        return None
    target: list[int | None] = []
    for part in node.inputs:
        given = _constant(part)
        if given is not None:
            target += given
        elif part is not None and part.shape is not None and part.shape.is_static():
            target += [None] * math.prod(part.shape.numpy())
        else:
            return None
    return target
