"""Operators that multiply an activation with a weight, as [out, in] matrices whatever their own order and packing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gatenorm_export.checkpoints.onnx_constants import (
    Read,
    constant,
    constant_tensor,
    dequantised,
    unpacked_blocks,
)
from gatenorm_export.checkpoints.onnx_relayouts import attribute
from gatenorm_export.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

_MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class Operands:
    """Where a projection has its activation, weight, and the scale and zero point of a quantised weight.

    ``scale`` is None where the graph multiplies with it later, or the weight is not quantised.
    """

    data: int = 0
    weight: int = 1
    scale: int | None = None
    zero_point: int | None = None
    quantised: bool = False


_OPERANDS: dict[tuple[str, str], Operands] = {
    ("", "MatMul"): Operands(),
    ("", "Gemm"): Operands(),
    ("", "Conv"): Operands(),
    ("", "MatMulInteger"): Operands(zero_point=3, quantised=True),
    ("", "QLinearMatMul"): Operands(weight=3, scale=4, zero_point=5, quantised=True),
    (_MICROSOFT, "QLinearMatMul"): Operands(weight=3, scale=4, zero_point=5, quantised=True),
    (_MICROSOFT, "QGemm"): Operands(weight=3, scale=4, zero_point=5, quantised=True),
    (_MICROSOFT, "FusedMatMul"): Operands(),
    (_MICROSOFT, "TransposeMatMul"): Operands(),
    (_MICROSOFT, "MatMulIntegerToFloat"): Operands(scale=3, zero_point=5, quantised=True),
    (_MICROSOFT, "DynamicQuantizeMatMul"): Operands(scale=2, zero_point=3, quantised=True),
    (_MICROSOFT, "MatMulNBits"): Operands(scale=2, zero_point=3),
    # These project inside, to queries, keys and values side by side.
    (_MICROSOFT, "Attention"): Operands(),
    (_MICROSOFT, "PackedAttention"): Operands(),
    (_MICROSOFT, "LongformerAttention"): Operands(),
    (_MICROSOFT, "DecoderMaskedSelfAttention"): Operands(),
    (_MICROSOFT, "QAttention"): Operands(scale=4, zero_point=7, quantised=True),
}


_STORED = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16", "DOUBLE": "F64"}


@dataclasses.dataclass(frozen=True)
class Projection:
    """One product with a weight: ``depth`` inputs, ``width`` outputs along ``axis`` of its result."""

    node: ir.Node
    operands: Operands
    depth: int
    width: int
    axis: int
    transposed: bool
    """Whether the weight is kept as [out, in]."""
    rank: int = 3
    """The rank of its result, where the graph does not tell."""

    @property
    def data(self) -> ir.Value | None:
        """The activation."""
        return self.node.inputs[self.operands.data]

    @property
    def stored_as(self) -> str:
        """The type of its weight as the file has it."""
        if self.node.op_type == "MatMulNBits":
            return f"{attribute(self.node, 'bits', 4)}-bit blocks"
        value = self.node.inputs[self.operands.weight]
        while value is not None and constant_tensor(value) is None and value.producer() is not None:
            value = value.producer().inputs[0]  # type: ignore[union-attr]
        tensor = constant_tensor(value)
        return "" if tensor is None else _STORED.get(tensor.dtype.name, tensor.dtype.name)

    @property
    def name(self) -> str:
        """The weight, as messages name it."""
        weight = self.node.inputs[self.operands.weight]
        return f"{self.node.name or self.node.op_type} (weight {weight.name if weight is not None else ''})"

    def weight(self, where: str, read: Read) -> np.ndarray:
        """The weight as [out, in], dequantised where it is quantised.

        Raises:
            InputError: it cannot be read, or is packed in a way that is not known.
        """
        node, places = self.node, self.operands
        try:
            if node.op_type == "MatMulNBits":
                return self._blocks(where, read)
            weight = constant(node.inputs[places.weight], where, read)
            if node.op_type == "Conv":
                weight = weight.reshape(weight.shape[0], -1)
            weight = weight.reshape(weight.shape[-2:])
            if places.quantised:
                scale = self._operand(places.scale, where, read)
                scale = self._later_scale(where, read) if scale is None else scale
                weight = dequantised(weight, scale, self._operand(places.zero_point, where, read), axis=1)
        except ValueError as error:
            raise InputError(f"{where}: the weight of {self.name} cannot be dequantised ({error})") from error
        alpha = attribute(node, "alpha", 1.0) if node.op_type in {"Gemm", "FusedMatMul", "TransposeMatMul"} else 1.0
        weight = weight if self.transposed else weight.T
        return weight if alpha == 1.0 else weight.astype(np.float32) * np.float32(alpha)

    def _operand(self, index: int | None, where: str, read: Read) -> np.ndarray | None:
        if index is None or index >= len(self.node.inputs) or self.node.inputs[index] is None:
            return None
        return constant(self.node.inputs[index], where, read)

    def _blocks(self, where: str, read: Read) -> np.ndarray:
        packed, scales = self._operand(1, where, read), self._operand(2, where, read)
        if packed is None or scales is None:
            raise ValueError("it has no scales")
        return unpacked_blocks(
            packed,
            scales,
            self._operand(3, where, read),
            self._operand(4, where, read),
            bits=attribute(self.node, "bits", 4),
            block=attribute(self.node, "block_size", 32),
            depth=self.depth,
        )

    def _later_scale(self, where: str, read: Read) -> np.ndarray:
        """MatMulInteger leaves the scales to a Mul behind a Cast, where that of the activation has joined them."""
        values = [*self.node.outputs]
        for _ in range(3):
            consumers = [node for value in values for node in value.consumers()]
            for node in consumers:
                if node.op_type != "Mul":
                    continue
                for operand in node.inputs:
                    if operand is None or operand in values:
                        continue
                    if constant_tensor(operand) is not None:
                        return constant(operand, where, read)
                    product = operand.producer()
                    factors = product.inputs if product is not None and product.op_type == "Mul" else ()
                    for factor in factors:
                        if constant_tensor(factor) is not None:
                            return constant(factor, where, read)
            values = [value for node in consumers for value in node.outputs]
        raise ValueError("its scale is not found behind it")


def projection_of(node: ir.Node, varies: Callable[[ir.Value | None], bool]) -> Projection | None:
    """The projection that a node is; None where it is none."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    places = _OPERANDS.get((domain, node.op_type))
    if places is None or len(node.inputs) <= max(places.data, places.weight):
        return None
    weight = node.inputs[places.weight]
    if weight is None or not varies(node.inputs[places.data]) or varies(weight) or attribute(node, "transA", 0):
        return None
    if node.op_type == "MatMulNBits":
        depth, width = attribute(node, "K", 0), attribute(node, "N", 0)
        return Projection(node, places, depth, width, -1, transposed=True)
    shape = _shape(weight)
    if node.op_type == "Conv":
        if len(shape) < 3 or math.prod(shape[2:]) != 1 or attribute(node, "group", 1) != 1:
            return None
        return Projection(node, places, shape[1], shape[0], 1, transposed=True, rank=len(shape))
    if len(shape) < 2 or math.prod(shape[:-2]) != 1:
        return None
    transposed = bool(attribute(node, "transB", 0))
    width, depth = (shape[-2], shape[-1]) if transposed else (shape[-1], shape[-2])
    return Projection(node, places, depth, width, -1, transposed=transposed, rank=2 if node.op_type == "Gemm" else 3)


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = constant_tensor(value)
    if tensor is not None:
        return tuple(int(length) for length in tensor.shape.numpy())
    if value.shape is not None and value.shape.is_static():
        return tuple(int(length) for length in value.shape.numpy())
    try:
        return constant(value, value.name or "").shape
    except InputError:
        return ()
