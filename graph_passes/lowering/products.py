"""com.microsoft's matrix products as ONNX's own: FusedMatMul, and MatMulNBits with its packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graph_passes.lowering.lower_tape import CannotLower, LowerTape

Results = Sequence[ir.Value | None]

_PACKED_BITS = (2, 4, 8)


def lower_fused_product(tape: LowerTape) -> Results:
    """FusedMatMul: alpha * A' B', where the last two axes, or the first and the batch axes, may be transposed.

    Raises:
        CannotLower: axes are transposed whose number cannot be told.
    """
    factors = []
    for index, letter in enumerate("AB"):
        factor = tape.needed(index)
        last, batch = tape.integer(f"trans{letter}", 0), tape.integer(f"transBatch{letter}", 0)
        if last or batch:
            rank = tape.rank(factor)
            perm = list(range(rank))
            if batch and rank > 2:
                perm = [*perm[1:-1], 0, perm[-1]]
            if last and rank > 1:
                perm[-2:] = [perm[-1], perm[-2]]
            factor = tape.transpose(factor, *perm)
        factors.append(factor)
    product, alpha = tape.op("MatMul", *factors), tape.real("alpha", 1.0)
    return [product if alpha == 1.0 else tape.op("Mul", product, tape.number(alpha, product))]


def lower_packed_product(tape: LowerTape) -> Results:
    """MatMulNBits with the weight as floating-point numbers.

    The product is that of the unrounded activation: ``accuracy_level`` lets a kernel round it to 8 bits, which no
    graph can say.
    """
    return _product(tape, _float_weight(tape))


def lower_packed_product_to_int4(tape: LowerTape) -> Results:
    """MatMulNBits with its weight in blocks of signed 4 bits behind a DequantizeLinear, where it can be written so.

    That takes 4 bits, opset 21 and the zero point 8 everywhere: a signed weight without a zero point is what TensorRT
    reads. Otherwise the weight becomes floating-point numbers.
    """
    if not can_be_int4(tape.node, tape.opset):
        return lower_packed_product(tape)
    packed = _Packed(tape)
    scales = _tensor(tape, 2)
    weight = _initializer(
        tape, "int4", ir.LazyTensor(packed.int4, ir.DataType.INT4, ir.Shape([packed.inner, packed.outer]))
    )
    shape = ir.Shape([packed.blocks, packed.outer])
    scale = _initializer(tape, "scale", ir.LazyTensor(packed.scales_by_block, scales.dtype, shape))
    attributes = {"axis": 0, "block_size": packed.block}
    return _product(tape, tape.op("DequantizeLinear", weight, scale, **attributes))


def can_be_int4(node: ir.Node, opset: int) -> bool:
    """Whether a MatMulNBits has a weight that DequantizeLinear reads from 4 bits without a zero point."""
    if opset < 21 or ("bits" in node.attributes and node.attributes["bits"].as_int() != 4):
        return False
    if len(node.inputs) <= 3 or node.inputs[3] is None:
        return True
    zeros = node.inputs[3].const_value
    if zeros is None:
        return False
    array = zeros.numpy()
    if zeros.dtype != ir.DataType.UINT8:
        return bool((array == 8).all())
    # The last half byte of a row is not read where its number of blocks is odd.
    blocks = -(-node.attributes["K"].as_int() // node.attributes["block_size"].as_int())
    rows = _unpacked(array.reshape(node.attributes["N"].as_int(), -1), 4)
    return bool((rows[:, :blocks] == 8).all())


class _Packed:
    """The operands of a MatMulNBits; arrays are made when they are asked for."""

    def __init__(self, tape: LowerTape) -> None:
        self.inner, self.outer = tape.integer("K"), tape.integer("N")
        self.block, self.bits = tape.integer("block_size"), tape.integer("bits", 4)
        self.blocks = -(-self.inner // self.block)
        if self.bits not in _PACKED_BITS:
            raise CannotLower(f"its weights have {self.bits} bits; known are {', '.join(map(str, _PACKED_BITS))}")
        if tape.integer("weight_prepacked", 0):
            raise CannotLower("its weights are packed for one kind of device (weight_prepacked)")
        if tape.operand(4) is not None:
            raise CannotLower("its groups are reordered (g_idx)")
        self._packed, self._scales = _tensor(tape, 1), _tensor(tape, 2)
        self._zeros = _tensor(tape, 3) if tape.operand(3) is not None else None

    def weight(self) -> ir.TensorProtocol:
        """The weight [K, N] as the scales' type."""
        scales = self._scales.numpy().reshape(self.outer, self.blocks)
        wide = scales.astype("float32")
        quants = self._rows(self._packed.numpy()).astype("float32")
        zero: Any = float(2 ** (self.bits - 1))
        if self._zeros is not None:
            zeros = self._zeros.numpy()
            if self._zeros.dtype == ir.DataType.UINT8:
                zeros = _unpacked(zeros.reshape(self.outer, -1), self.bits)[:, : self.blocks]
            zero = self._per_column(zeros.reshape(self.outer, self.blocks).astype("float32"))
        rows = (quants - zero) * self._per_column(wide)
        return ir.tensor(rows.T.copy().astype(scales.dtype))

    def int4(self) -> ir.TensorProtocol:
        """The weight [K, N] as signed 4-bit numbers: 8 less than what is stored."""
        rows = self._rows(self._packed.numpy()).astype("int8") - 8
        return ir.tensor(rows.T.copy().astype(ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4)

    def scales_by_block(self) -> ir.TensorProtocol:
        """The scales [blocks, N]."""
        return ir.tensor(self._scales.numpy().reshape(self.outer, self.blocks).T.copy())

    def _rows(self, packed: Any) -> Any:
        return _unpacked(packed.reshape(self.outer, -1), self.bits)[:, : self.inner]

    def _per_column(self, per_block: Any) -> Any:
        return per_block.repeat(self.block, axis=1)[:, : self.inner]


def _unpacked(packed: Any, bits: int) -> Any:
    """The numbers in bytes [rows, n], lowest bits first: [rows, n * 8 / bits]."""
    per_byte = 8 // bits
    numbers = packed.repeat(per_byte, axis=1)
    for place in range(per_byte):
        numbers[:, place::per_byte] = (numbers[:, place::per_byte] >> (bits * place)) & (2**bits - 1)
    return numbers


def _float_weight(tape: LowerTape) -> ir.Value:
    packed = _Packed(tape)
    dtype = _tensor(tape, 2).dtype
    return _initializer(tape, "weight", ir.LazyTensor(packed.weight, dtype, ir.Shape([packed.inner, packed.outer])))


def _product(tape: LowerTape, weight: ir.Value) -> Results:
    product, bias = tape.op("MatMul", tape.needed(0), weight), tape.operand(5)
    return [product if bias is None else tape.op("Add", product, bias)]


def _tensor(tape: LowerTape, index: int) -> ir.TensorProtocol:
    tensor = tape.needed(index).const_value
    if tensor is None:
        raise CannotLower(f"operand {index} is no constant")
    return tensor


def _initializer(tape: LowerTape, name: str, tensor: ir.LazyTensor) -> ir.Value:
    """A weight of its own; layers that share the packed one share this."""
    operands = tape.node.inputs[1:4]

    def make() -> ir.Value:
        first = operands[0]
        tensor.name = f"{first.name if first is not None else tape.node.name}/{name}"
        value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        tape.graph.register_initializer(value)
        return value

    return tape.once((name, *operands), make)
