"""Lengths of activations whose shapes a graph does not tell, from what they were computed from.

Shape inference knows nothing of com.microsoft's operators, such as MatMulNBits, nor of anything behind them. Products
with weights, norms, sums and activations leave batch and sequence as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gatenorm_export.checkpoints.onnx_projections import projection_of
from gatenorm_export.checkpoints.onnx_relayouts import PASSING

if TYPE_CHECKING:
    import onnx_ir as ir

_ACTIVATIONS = frozenset(
    {
        *("Relu", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Silu", "Swish", "Sigmoid", "Tanh", "Erf", "Softplus"),
        *("Elu", "LeakyRelu", "HardSwish", "Mish"),
    }
)
_SUMS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Sum", "SkipLayerNormalization"})
_KEEPING: dict[str, slice] = {
    **dict.fromkeys((*PASSING, *_ACTIVATIONS), slice(0, 1)),
    **dict.fromkeys((*_SUMS, "SkipSimplifiedLayerNormalization"), slice(None)),
}
"""Operators whose results have the lengths of their operands, and which operands."""


def measured(value: ir.Value, varies: Callable[[ir.Value | None], bool]) -> list[int] | None:
    """The lengths of an activation, of named ones 1; None where neither its shape nor anything before it tells them.

    What comes before is asked only where it varies, for a bias or a table of positions is shorter than what it is added
    to, and only where it is no higher than [batch, sequence, width].
    """
    if value.shape is not None:
        return _whole(value.shape)
    # Each with the width that the projections between it and the value give it.
    waiting: deque[tuple[ir.Value, int | None]] = deque([(value, None)])
    seen: set[ir.Value] = {value}
    while waiting:
        here, width = waiting.popleft()
        # A scale of quantised activations varies as well and is one number, and a table of rotary embeddings is spread
        # over the heads that it turns; neither has the lengths of what it multiplies.
        if here.shape is not None and here.shape.rank() in {2, 3}:
            lengths = _whole(here.shape)
            if width is not None:
                lengths[-1] = width
            return lengths
        for before, own in _before(here, varies):
            if before not in seen:
                seen.add(before)
                waiting.append((before, own if width is None else width))
    return None


def _whole(shape: ir.Shape) -> list[int]:
    return [length if isinstance(length, int) else 1 for length in shape]


def _before(value: ir.Value, varies: Callable[[ir.Value | None], bool]) -> list[tuple[ir.Value, int | None]]:
    node = value.producer()
    if node is None or node.op_type.endswith("Attention"):
        return []
    if node.op_type in _KEEPING:
        return [
            (operand, None)
            for operand in node.inputs[_KEEPING[node.op_type]]
            if operand is not None and varies(operand)
        ]
    projection = projection_of(node, varies)
    if projection is None or projection.data is None or projection.axis != -1:
        return []
    return [(projection.data, projection.width)]
