"""What gatenorm knows of operators: attention, norms that add, sums, products, relayouts. Data, no behaviour.

Operators are looked up as (domain, name); the domain of ONNX itself is "". Operand positions are those of the
operators' published schemas (ONNX 1.23, ONNX Runtime 1.32's contrib operators).
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

MICROSOFT = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class AttentionOperator:
    """Where a fused attention operator has its operands; without ``key``, query, key and value come packed in one."""

    query: int
    key: int | None
    value: int | None
    past: tuple[int, ...] = ()
    present: tuple[int, ...] = ()
    optional_key: bool = False
    """Whether an absent key operand means that the query operand holds all three."""


ATTENTION_OPERATORS: dict[tuple[str, str], AttentionOperator] = {
    ("", "Attention"): AttentionOperator(0, 1, 2, (4, 5), (1, 2)),
    (MICROSOFT, "Attention"): AttentionOperator(0, None, None, (4,), (1,)),
    (MICROSOFT, "QAttention"): AttentionOperator(0, None, None, (8,), (1,)),
    (MICROSOFT, "MultiHeadAttention"): AttentionOperator(0, 1, 2, (6, 7), (1, 2), optional_key=True),
    (MICROSOFT, "GroupQueryAttention"): AttentionOperator(0, 1, 2, (3, 4), (1, 2), optional_key=True),
    (MICROSOFT, "SparseAttention"): AttentionOperator(0, 1, 2, (3, 4), (1, 2), optional_key=True),
    (MICROSOFT, "PagedAttention"): AttentionOperator(0, 1, 2, (3, 4), (1, 2), optional_key=True),
    (MICROSOFT, "DecoderMaskedMultiHeadAttention"): AttentionOperator(0, 1, 2, (5, 6), (1, 2), optional_key=True),
    (MICROSOFT, "DecoderMaskedSelfAttention"): AttentionOperator(0, None, None, (4,), (1,)),
    (MICROSOFT, "DecoderAttention"): AttentionOperator(0, 1, 1, (6, 7), (1, 2)),
    (MICROSOFT, "PackedAttention"): AttentionOperator(0, None, None),
    (MICROSOFT, "PackedMultiHeadAttention"): AttentionOperator(0, 1, 2, optional_key=True),
    (MICROSOFT, "LongformerAttention"): AttentionOperator(0, None, None),
}

SOFTMAXES: dict[tuple[str, str], int] = {
    ("", "Softmax"): 0,
    (MICROSOFT, "BiasSoftmax"): 0,
    (MICROSOFT, "QLinearSoftmax"): 0,
}
"""Softmax operators and their operand."""

PRODUCTS: dict[tuple[str, str], tuple[int, int]] = {
    ("", "MatMul"): (0, 1),
    ("", "Gemm"): (0, 1),
    ("", "Einsum"): (0, 1),
    ("", "MatMulInteger"): (0, 1),
    ("", "QLinearMatMul"): (0, 3),
    (MICROSOFT, "FusedMatMul"): (0, 1),
    (MICROSOFT, "FusedMatMulActivation"): (0, 1),
    (MICROSOFT, "TransposeMatMul"): (0, 1),
    (MICROSOFT, "MatMulIntegerToFloat"): (0, 1),
    (MICROSOFT, "DynamicQuantizeMatMul"): (0, 1),
    (MICROSOFT, "QLinearMatMul"): (0, 3),
}
"""Matrix products and their two factors."""

PROJECTIONS = frozenset({*PRODUCTS, ("", "Conv"), (MICROSOFT, "MatMulNBits"), (MICROSOFT, "MatMulFpQ4")})
"""Operators that multiply an activation with a weight, where one of their first two operands is one."""

PROJECTIONS_WITH_BIAS: dict[tuple[str, str], int] = {
    ("", "Gemm"): 2,
    ("", "Conv"): 2,
    (MICROSOFT, "MatMulNBits"): 5,
    (MICROSOFT, "MatMulIntegerToFloat"): 6,
    (MICROSOFT, "DynamicQuantizeMatMul"): 4,
}
"""Products with a weight that can add a bias themselves, and the operand that holds it."""


@dataclasses.dataclass(frozen=True)
class SkipNorm:
    """A norm that computes ``norm(input + skip [+ bias])``: operands 0 and 1, scale and shift, and what it becomes.

    Output 3 is the sum. ``alone`` is the operator that norms one operand with the same scale and shift.
    """

    scale: int
    shift: int | None
    bias: int
    alone: tuple[str, str]
    epsilon: float
    """The operator's default epsilon; the lone norm's default differs."""
    sum_output: int = 3


SKIP_NORMS: dict[tuple[str, str], SkipNorm] = {
    (MICROSOFT, "SkipLayerNormalization"): SkipNorm(2, 3, 4, ("", "LayerNormalization"), 1e-12),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): SkipNorm(2, None, 3, ("", "SimplifiedLayerNormalization"), 1e-12),
}

SUMS: dict[tuple[str, str], tuple[int, ...] | None] = {
    ("", "Add"): (0, 1),
    ("", "Sum"): None,
    (MICROSOFT, "QLinearAdd"): (0, 3),
    **dict.fromkeys(SKIP_NORMS, (0, 1)),
}
"""Operators that add tensors, and the positions of the summands (None: all operands)."""

NORMS = frozenset(
    {
        ("", "LayerNormalization"),
        ("", "SimplifiedLayerNormalization"),
        ("", "RMSNormalization"),
        (MICROSOFT, "SimplifiedLayerNormalization"),
    }
)

# Between the scores product and the softmax: scale, mask, soft cap (Div, Tanh, Mul), casts, sinks (Concat), relayout.
SCORE_STEPS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Where", "Tanh", "Cast", "Identity", "Concat", "Clip", "Max", "Min", "Slice"),
        *("Reshape", "Expand", "Transpose", "Unsqueeze", "Squeeze", "QuantizeLinear", "DequantizeLinear", "Sum"),
        *("QLinearAdd", "QLinearMul"),
    }
)
# Between the softmax and the product with the values: casts, dropout, guards against rows that are masked throughout
# (IsNaN, Where), sinks cut off again (Slice), head masks (Mul), the difference of two maps (Sub).
PROBABILITY_STEPS = frozenset(
    {
        *("Cast", "Identity", "Dropout", "Where", "IsNaN", "Not", "Slice", "Mul", "Div", "Reshape", "Expand"),
        *("Transpose", "Unsqueeze", "Squeeze", "QuantizeLinear", "DequantizeLinear", "Sub", "Add"),
        *("DynamicQuantizeLinear", "QLinearMul"),
    }
)
# Relayout between a cache tensor and the product: only operands that carry data are followed, never a shape operand.
# Rotary embeddings (Mul, Add, Neg, Slice, Concat) lie on this way in graphs that cache unrotated keys, and scatters in
# graphs that keep a cache of fixed length.
LAYOUT_STEPS: dict[str, slice] = {
    "Transpose": slice(0, 1),
    "Reshape": slice(0, 1),
    "Expand": slice(0, 1),
    "Unsqueeze": slice(0, 1),
    "Squeeze": slice(0, 1),
    "Cast": slice(0, 1),
    "CastLike": slice(0, 1),
    "Identity": slice(0, 1),
    "Slice": slice(0, 1),
    "Gather": slice(0, 1),
    "Tile": slice(0, 1),
    "Split": slice(0, 1),
    "Neg": slice(0, 1),
    "Pad": slice(0, 1),
    "QuantizeLinear": slice(0, 1),
    "DequantizeLinear": slice(0, 1),
    "RotaryEmbedding": slice(0, 1),
    "GemmaRotaryEmbedding": slice(None),
    "Concat": slice(None),
    "Mul": slice(None),
    "Div": slice(None),
    "Add": slice(None),
    "Sub": slice(None),
    "Where": slice(1, None),
    "ScatterElements": slice(0, None, 2),
    "ScatterND": slice(0, None, 2),
    "TensorScatter": slice(0, 2),
}
# From a key or value towards a graph output: the cache as a client sees it may be packed, cut to a window or quantised.
PRESENT_STEPS = frozenset(
    {
        *("Identity", "Cast", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Split", "Gather", "Concat"),
        *("QuantizeLinear", "DequantizeLinear", "Pad"),
    }
)
# Steps that only scale or relay a summand: through them the residual stream is still recognised.
LINEAR_STEPS = frozenset(
    {
        *("Cast", "CastLike", "Identity", "Dropout", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Slice", "Neg", "Expand", "Gather"),
    }
)

# What may stand between "attention + other branch" and the residual add of a parallel block. A projection there would
# mean that the first add is inside the sublayer (a convolution of the values beside attention, say).
BETWEEN_PARALLEL_SUMS = frozenset(
    {
        *LINEAR_STEPS,
        *("Mul", "Div", "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"),
        # What a norm is made of where it was written out.
        *("ReduceMean", "ReduceL2", "Sub", "Pow", "Add", "Sqrt", "Reciprocal"),
    }
)


def operator_of(node: ir.Node) -> tuple[str, str]:
    """The (domain, name) of a node's operator; "ai.onnx" is ONNX's own domain by its other name."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def operator_name(node: ir.Node) -> str:
    """An operator as a person writes it: with its domain, unless that is ONNX's own."""
    domain, name = operator_of(node)
    return f"{domain}.{name}" if domain else name


def node_name(node: ir.Node) -> str:
    """A node as messages name it: its name and operator, and what it computes where the names were stripped."""
    if node.name:
        return f"node {node.name} ({operator_name(node)})"
    return f"node <unnamed> ({operator_name(node)}, computes {node.outputs[0].name or 'nothing'})"
