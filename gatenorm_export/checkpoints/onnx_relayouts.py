"""Operators between a projection and an attention: what each does to the places of a tensor's elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Numbers = np.ndarray | None


MOST_ELEMENTS = 1 << 27
"""No query of one batch of one sequence has more; what a file makes of a few bytes could."""


class Untold(Exception):
    """An operand that decides where elements go is not known."""


def _bounded(*lengths: int) -> None:
    """Refuse to make a tensor of lengths that lie.

    Raises:
        Untold: it would have too many elements.
    """
    if math.prod(map(int, lengths)) > MOST_ELEMENTS:
        raise Untold


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def _numbers(node: ir.Node, name: str, operands: Sequence[Numbers], given: Sequence[bool], index: int) -> Any:
    """Whole numbers that older operator sets keep in an attribute and newer ones in an operand; None if absent."""
    if index < len(given) and given[index]:
        operand = operands[index]
        if operand is None:
            raise Untold
        return [int(number) for number in np.atleast_1d(operand)]
    return attribute(node, name, None)


def _reshape(node: ir.Node, data: np.ndarray, operands: Sequence[Numbers], given: Sequence[bool], _: int) -> np.ndarray:
    target = _numbers(node, "shape", operands, given, 0)
    if not attribute(node, "allowzero", 0):
        target = [data.shape[axis] if length == 0 else length for axis, length in enumerate(target)]
    return data.reshape(target)


def _transpose(node: ir.Node, data: np.ndarray, *_: Any) -> np.ndarray:
    return data.transpose(attribute(node, "perm", None))


def _unsqueeze(node: ir.Node, data: np.ndarray, operands: Any, given: Any, _: int) -> np.ndarray:
    return np.expand_dims(data, tuple(_numbers(node, "axes", operands, given, 0)))


def _squeeze(node: ir.Node, data: np.ndarray, operands: Any, given: Any, _: int) -> np.ndarray:
    axes = _numbers(node, "axes", operands, given, 0)
    return data.squeeze(None if axes is None else tuple(axes))


def _flatten(node: ir.Node, data: np.ndarray, *_: Any) -> np.ndarray:
    axis = attribute(node, "axis", 1) % (data.ndim + 1)
    return data.reshape(int(np.prod(data.shape[:axis])), -1)


def _split(node: ir.Node, data: np.ndarray, operands: Any, given: Any, output: int) -> np.ndarray:
    axis = attribute(node, "axis", 0)
    sizes = _numbers(node, "split", operands, given, 0)
    if sizes is None:
        # An even split, the last part shorter where the length does not divide.
        count = len(node.outputs)
        size = -(-data.shape[axis] // count)
        sizes = [size] * (count - 1)
    part: np.ndarray = np.split(data, np.cumsum(sizes)[: len(node.outputs) - 1], axis)[output]
    return part


def _slice(node: ir.Node, data: np.ndarray, operands: Any, given: Any, _: int) -> np.ndarray:
    starts, ends = _numbers(node, "starts", operands, given, 0), _numbers(node, "ends", operands, given, 1)
    axes = _numbers(node, "axes", operands, given, 2)
    axes = list(range(len(starts))) if axes is None else axes
    steps = _numbers(node, "steps", operands, given, 3)
    steps = [1] * len(starts) if steps is None else steps
    places: list[Any] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Backwards, an end below the first element means "up to and with it".
        backwards = step < 0 and end < -data.shape[axis]
        places[axis] = slice(start, None if backwards else end, step)
    cut: np.ndarray = data[tuple(places)]
    return cut


def _gather(node: ir.Node, data: np.ndarray, operands: Sequence[Numbers], given: Any, _: int) -> np.ndarray:
    if operands[0] is None:
        raise Untold
    _bounded(data.size // max(1, data.shape[attribute(node, "axis", 0)]), operands[0].size)
    taken: np.ndarray = np.take(data, operands[0].astype(np.int64), axis=attribute(node, "axis", 0))
    return taken


def _gather_nd(node: ir.Node, data: np.ndarray, operands: Sequence[Numbers], given: Any, _: int) -> np.ndarray:
    """Parts by the numbers of their leading axes, as torch's exporter writes ``x[:, :, [-2]]`` (Falcon's key)."""
    indices = operands[0]
    # A batch of its own for the numbers is another operator than this one.
    if indices is None or attribute(node, "batch_dims", 0):
        raise Untold
    indices = indices.astype(np.int64)
    _bounded(indices.size, *data.shape[indices.shape[-1] :])
    taken: np.ndarray = data[tuple(np.moveaxis(indices, -1, 0))]
    return taken


def _expand(node: ir.Node, data: np.ndarray, operands: Any, given: Any, _: int) -> np.ndarray:
    target = _numbers(node, "shape", operands, given, 0)
    # A length of -1, which some exporters write, keeps the own one.
    own = [1] * (len(target) - data.ndim) + list(data.shape)
    target = [mine if length < 0 else length for mine, length in zip(own[-len(target) :], target, strict=True)]
    _bounded(*np.broadcast_shapes(data.shape, tuple(target)))
    spread: np.ndarray = np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(target)))
    return spread


def _tile(node: ir.Node, data: np.ndarray, operands: Any, given: Any, _: int) -> np.ndarray:
    repeats = _numbers(node, "repeats", operands, given, 0)
    _bounded(data.size, *repeats)
    return np.tile(data, repeats)


Relayout = Callable[[Any, np.ndarray, Sequence[Numbers], Sequence[bool], int], np.ndarray]

RELAYOUTS: dict[str, Relayout] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Expand": _expand,
    "Tile": _tile,
}
"""Operators that move elements: node, data, further operands, which of those are given, number of the result."""

PASSING: dict[str, int] = {
    **dict.fromkeys(("Cast", "CastLike", "Identity", "Dropout", "Neg", "Clip"), 0),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), 0),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"), 0),
    **dict.fromkeys(("LpNormalization", "RotaryEmbedding", "BiasAdd", "QLinearAdd", "QLinearMul"), 0),
}
"""Operators whose first result has its elements where the operand of this number has them.

A fused rotary embedding turns pairs inside a head, of queries and keys alike, which no score sees.
"""

SCATTERS: dict[str, int] = {"ScatterND": 2, "ScatterElements": 2, "TensorScatter": 1}
"""Writers into a cache of fixed length, and the operand with what is written."""


def _both(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Any, Sequence[Any]], np.ndarray]:
    def compute(_: Any, operands: Sequence[Any]) -> np.ndarray:
        left, right = operands
        if not isinstance(left, np.ndarray) or not isinstance(right, np.ndarray):
            raise Untold
        return function(left, right)

    return compute


def _where(_: Any, operands: Sequence[Any]) -> np.ndarray:
    condition, yes, no = operands
    if not all(isinstance(operand, np.ndarray) for operand in operands):
        raise Untold
    chosen: np.ndarray = np.where(condition, yes, no)
    return chosen


def _power(_: Any, operands: Sequence[Any]) -> np.ndarray:
    raise Untold


ARITHMETIC: dict[str, Callable[[Any, Sequence[Any]], np.ndarray]] = {
    "Add": _both(np.add),
    "Sub": _both(np.subtract),
    "Mul": _both(np.multiply),
    "Div": _both(lambda left, right: left // right),
    "Equal": _both(np.equal),
    "Where": _where,
    "Pow": _power,
}
"""Operators that mix their operands element by element, and what they compute of whole numbers."""
