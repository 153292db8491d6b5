"""Weights in an ONNX graph: initializers inside the file or beside it, and what a graph computes from them alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gatenorm_export.checkpoints.onnx_relayouts import RELAYOUTS, Untold, attribute
from gatenorm_export.checkpoints.ranges import LocalFile
from gatenorm_export.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

# Shapes, indices and sizes of splits are a few numbers; a table of whole numbers is none of these.
_MOST_NUMBERS = 100_000
_DEEPEST = 50


def whole_numbers(value: ir.Value) -> np.ndarray | None:
    """The content of a small constant of whole numbers or truth values; None for anything else."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > _MOST_NUMBERS or not (tensor.dtype.is_integer() or tensor.dtype.name == "BOOL"):
        return None
    return np.asarray(tensor.numpy())


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, or of a Constant node."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant":
        return None
    for name in ("value", "value_ints", "value_int", "value_floats", "value_float"):
        if name in node.attributes:
            found = node.attributes[name].value
            if name == "value":
                tensor: ir.TensorProtocol = found
                return tensor
            import onnx_ir as ir

            return ir.Tensor(np.array(found, dtype=np.int64 if "int" in name else np.float32))
    return None


def read_tensor(tensor: ir.TensorProtocol) -> np.ndarray:
    """The content of a tensor. What lies in a data file is read from it: mapped, it would count as memory in use.

    Raises:
        InputError: the data file ends before the tensor, or cannot be read.
    """
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth % 8:
        return np.asarray(tensor.numpy())
    file = LocalFile(Path(tensor.path))
    try:
        data = file.read(tensor.offset or 0, tensor.nbytes)
    finally:
        file.close()
    return data.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())


Read = Callable[[Any], np.ndarray]
"""Tensor -> its content."""


def constant(value: ir.Value | None, where: str, read: Read = read_tensor, depth: int = 0) -> np.ndarray:
    """Compute a constant: an initializer, dequantised and relaid as the graph does it.

    Raises:
        InputError: the graph computes it in a way that is not known here.
    """
    tensor = constant_tensor(value)
    if tensor is not None:
        return read(tensor)
    node = value.producer() if value is not None else None
    if node is None or depth > _DEEPEST:
        raise InputError(f"{where}: a weight is not in the file")

    def operand(index: int) -> np.ndarray:
        return constant(node.inputs[index], where, read, depth + 1)

    if node.op_type in {"Identity", "Cast"}:
        data = operand(0)
        to = attribute(node, "to", None)
        if to is not None:
            import onnx_ir as ir

            data = data.astype(ir.DataType(to).numpy())
        return data
    if node.op_type == "DequantizeLinear":
        zero_point = operand(2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
        try:
            return dequantised(operand(0), operand(1), zero_point, axis=axis, block=block)
        except ValueError as error:
            raise InputError(f"{where}: a weight's scales do not fit it ({error})") from error
    if node.op_type in RELAYOUTS:
        rest = [whole_numbers(inner) if inner is not None else None for inner in node.inputs[1:]]
        given = [inner is not None for inner in node.inputs[1:]]
        try:
            return RELAYOUTS[node.op_type](node, operand(0), rest, given, value.index() or 0 if value else 0)
        except (Untold, ValueError, IndexError, TypeError) as error:
            raise InputError(f"{where}: a weight's {node.op_type} cannot be followed") from error
    if node.op_type in {"Mul", "Add", "Sub", "Div"}:
        left, right = (operand(index).astype(np.float32) for index in (0, 1))
        computed: np.ndarray = getattr(np, _ARITHMETIC[node.op_type])(left, right)
        return computed
    raise InputError(f"{where}: a weight is computed by {node.op_type}, which is not known here")


_ARITHMETIC = {"Mul": "multiply", "Add": "add", "Sub": "subtract", "Div": "divide"}


def dequantised(
    data: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, *, axis: int = 1, block: int = 0
) -> np.ndarray:
    """(data - zero_point) * scale in float32, as ONNX's DequantizeLinear: scales by tensor, by axis, or by block.

    Raises:
        ValueError: the scales do not fit the data.
    """
    values = data.astype(np.float32)
    parts: list[Any] = []
    for part in (zero_point, scale):
        if part is not None:
            part = part.astype(np.float32)
            if block:
                # A block is no longer than the axis, whatever the attribute says.
                part = np.repeat(part, min(block, data.shape[axis]), axis=axis).take(range(data.shape[axis]), axis=axis)
            elif part.size > 1:
                shape = [1] * data.ndim
                shape[axis] = -1
                part = part.reshape(shape)
            else:
                part = part.reshape(())
        parts.append(part)
    if parts[0] is not None:
        values -= parts[0]
    values *= parts[1]
    return values


def unpacked_blocks(
    packed: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None,
    groups: np.ndarray | None,
    *,
    bits: int,
    block: int,
    depth: int,
) -> np.ndarray:
    """The weights [n, depth] of com.microsoft's MatMulNBits in float32: (value - zero point) * scale.

    ``packed`` is [n, n_blocks, block * bits / 8] with the lowest bits first, ``scales`` n * n_blocks, ``zero_points``
    packed alike along each row, or as floats one for each scale; absent they are half of the range. ``groups``, where
    present, names the block of each of the ``depth`` inputs.

    Raises:
        ValueError: the operands do not fit each other.
    """
    if bits not in {2, 4, 8}:
        raise ValueError(f"{bits} bits")
    n_blocks = math.ceil(depth / block)
    values = _bits(packed.reshape(packed.shape[0], -1), bits)[:, : n_blocks * block]
    rows = values.shape[0]
    scales = scales.astype(np.float32).reshape(rows, n_blocks)
    if zero_points is None:
        offsets = np.full((rows, n_blocks), 2 ** (bits - 1), dtype=np.float32)
    elif zero_points.dtype == np.uint8:
        offsets = _bits(zero_points.reshape(rows, -1), bits)[:, :n_blocks]
    else:
        offsets = zero_points.astype(np.float32).reshape(rows, n_blocks)
    if groups is None:
        spread = values.reshape(rows, n_blocks, block)
        spread -= offsets[:, :, None]
        spread *= scales[:, :, None]
        return spread.reshape(rows, -1)[:, :depth]
    places = groups.astype(np.int64).reshape(-1)[:depth]
    return np.asarray((values[:, :depth] - offsets[:, places]) * scales[:, places])


def _bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """[rows, bytes] -> [rows, bytes * 8 / bits] in float32, the lowest bits of each byte first."""
    if bits == 8:
        return packed.astype(np.float32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    return parts.reshape(packed.shape[0], -1).astype(np.float32)
