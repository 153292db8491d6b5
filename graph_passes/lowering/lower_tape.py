"""What a lowering is written with: nodes in front of the operator that they replace, typed, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import onnx_ir as ir

from graph_passes.element_types import type_of_result
from graph_passes.operators import node_name

INT32, INT64, FLOAT, BOOL = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL

_LOWEST = {
    ir.DataType.FLOAT: -3.4028234663852886e38,
    ir.DataType.FLOAT16: -65504.0,
    ir.DataType.BFLOAT16: -3.3895313892515355e38,
    ir.DataType.DOUBLE: -1.7976931348623157e308,
}
"""The lowest finite number of each type: what ONNX Runtime's masks hold."""

Attribute = int | float | str | Sequence[int] | ir.TensorProtocol


class CannotLower(Exception):
    """A node whose operator has a lowering but not in this form; the text says what stands in the way."""


class Shared:
    """Values that several lowered operators of a graph need, such as masks, so that each is computed once."""

    def __init__(self) -> None:
        self._values: dict[tuple[ir.Graph, Hashable], ir.Value] = {}

    def once(self, graph: ir.Graph, key: Hashable, make: Callable[[], ir.Value]) -> ir.Value:
        """The value of ``key``, made in front of its first reader: nodes must be lowered in their order."""
        if (graph, key) not in self._values:
            self._values[graph, key] = make()
        return self._values[graph, key]


class LowerTape:
    """Adds nodes in front of ``node``, which they are to replace; every value gets its element type."""

    def __init__(self, node: ir.Node, opset: int, shared: Shared) -> None:
        assert isinstance(node.graph, ir.Graph)
        self.node, self.opset, self.graph = node, opset, node.graph
        self._shared = shared
        self._base = f"{node.name or node.outputs[0].name or 'lowered'}/lowered"
        self._count = 0

    def once(self, key: Hashable, make: Callable[[], ir.Value]) -> ir.Value:
        """A value that other operators of the graph may share: ``key`` names it and holds what it is made from."""
        return self._shared.once(self.graph, key, make)

    # What the operator was given.

    def operand(self, index: int) -> ir.Value | None:
        """The operand at a place; None where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def needed(self, index: int) -> ir.Value:
        """The operand at a place.

        Raises:
            CannotLower: it is absent.
        """
        found = self.operand(index)
        if found is None:
            raise CannotLower(f"operand {index} is absent")
        return found

    def wanted(self, index: int) -> bool:
        """Whether anybody reads a result."""
        if index >= len(self.node.outputs):
            return False
        result = self.node.outputs[index]
        return bool(result.uses()) or result.is_graph_output()

    def integer(self, name: str, default: int | None = None) -> int:
        """An attribute that is a whole number.

        Raises:
            CannotLower: it is absent and has no default.
        """
        if name in self.node.attributes:
            return self.node.attributes[name].as_int()
        if default is None:
            raise CannotLower(f"attribute {name} is absent")
        return default

    def real(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return self.node.attributes[name].as_float() if name in self.node.attributes else default

    def dtype(self, value: ir.Value) -> ir.DataType:
        """The element type of a value.

        Raises:
            CannotLower: it is not known.
        """
        if value.dtype is None:
            raise CannotLower(f"the element type of {value.name} cannot be told")
        return value.dtype

    # New nodes.

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """A node of ONNX's own domain; its first result."""
        return self.many(op_type, 1, *inputs, **attributes)[0]

    def many(self, op_type: str, results: int, *inputs: ir.Value | None, **attributes: Attribute) -> list[ir.Value]:
        """A node with several results."""
        name = f"{self._base}/{op_type}_{self._count}"
        self._count += 1
        node = ir.node(op_type, inputs, attributes=attributes, num_outputs=results, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_output" if index == 0 else f"{name}_output_{index}"
            dtype = type_of_result(node, index)
            if dtype is not None:
                value.dtype = dtype
        self.graph.insert_before(self.node, node)
        return list(node.outputs)

    def ints(self, *numbers: int) -> ir.Value:
        """Whole numbers [n]."""
        return self.op("Constant", value=ir.tensor(list(numbers), dtype=INT64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """A scalar of another value's type."""
        return self.op("Constant", value=ir.tensor(number, dtype=self.dtype(like)))

    def lowest(self, like: ir.Value) -> ir.Value:
        """The lowest finite number of another value's type."""
        return self.number(_LOWEST[self.dtype(like)], like)

    def cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """The value in another type; itself where it has that type."""
        return value if value.dtype == to else self.op("Cast", value, to=int(to))

    def transpose(self, value: ir.Value, *perm: int) -> ir.Value:
        """Axes in another order."""
        return self.op("Transpose", value, perm=perm)

    def reshape(self, value: ir.Value, *lengths: int | ir.Value) -> ir.Value:
        """Another shape; 0 keeps a length, -1 is what is left, a value [1] is a length of its own."""
        fixed = [length for length in lengths if isinstance(length, int)]
        if len(fixed) == len(lengths):
            return self.op("Reshape", value, self.ints(*fixed))
        parts = [self.ints(length) if isinstance(length, int) else length for length in lengths]
        return self.op("Reshape", value, self.op("Concat", *parts, axis=0))

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """New axes of length 1."""
        return self.op("Unsqueeze", value, self.ints(*axes))

    def slice(self, value: ir.Value, axis: int, start: int | ir.Value, end: int | ir.Value, step: int = 1) -> ir.Value:
        """A part of one axis."""
        bounds = [self.ints(bound) if isinstance(bound, int) else bound for bound in (start, end)]
        extra = [self.ints(step)] if step != 1 else []
        return self.op("Slice", value, *bounds, self.ints(axis), *extra)

    def length(self, value: ir.Value, axis: int) -> ir.Value:
        """The length of an axis [1]; a constant where it is known."""
        known = self.known_length(value, axis)
        if known is not None:
            return self.ints(known)
        return self.once(
            ("length", value, axis), lambda: self.op("Gather", self.op("Shape", value), self.ints(axis), axis=0)
        )

    def known_length(self, value: ir.Value, axis: int) -> int | None:
        """The length of an axis where the graph declares it."""
        if value.shape is None or not -value.shape.rank() <= axis < value.shape.rank():
            return None
        length = value.shape[axis]
        return length if isinstance(length, int) else None

    def rank(self, value: ir.Value) -> int:
        """The number of axes of a value.

        Raises:
            CannotLower: it is not known.
        """
        if value.shape is None:
            raise CannotLower(f"the number of axes of {value.name} cannot be told")
        return value.shape.rank()

    def mean(self, value: ir.Value) -> ir.Value:
        """The mean over the last axis, which stays with length 1."""
        if self.opset >= 18:
            return self.op("ReduceMean", value, self.ints(-1))
        return self.op("ReduceMean", value, axes=[-1])

    def maximum(self, value: ir.Value) -> ir.Value:
        """The largest number of the last axis, which stays with length 1."""
        if self.opset >= 18:
            return self.op("ReduceMax", value, self.ints(-1))
        return self.op("ReduceMax", value, axes=[-1])

    def sum_of(self, values: Sequence[ir.Value]) -> ir.Value:
        """The values added up from the left."""
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value)
        return total

    def positions(self, length: ir.Value) -> ir.Value:
        """0, 1, ... below a length [1], as int64 [n]."""
        key = ("positions", length)

        def make() -> ir.Value:
            zero, one = (self.op("Constant", value=ir.tensor(number, dtype=INT64)) for number in (0, 1))
            return self.op("Range", zero, self.op("Squeeze", length, self.ints(0)), one)

        return self.once(key, make)

    def __str__(self) -> str:
        return node_name(self.node)
