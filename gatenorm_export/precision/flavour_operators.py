"""Which ONNX operators each flavour of TensorRT takes, and in which forms. Data, and one question to it.

``tensorrt`` is what the parser of TensorRT 10.0 lists (onnx-tensorrt, docs/operators.md); later ones, TensorRT 11 among
them, take these too. ``tensorrt-rtx`` is what the parser of TensorRT-RTX 1.7 answers to ``supports_operator``.

Left out although TensorRT-RTX offers them: ``Attention``, of which it takes one result only, no soft cap and no
precision of the softmax, and whose ``nonpad_kv_seqlen`` it drops without a word; and every operator of com.microsoft,
of which it takes some forms. What is left out is lowered to what is in the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_BOTH = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool"),
        *("BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape"),
        *("Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout"),
        *("Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather"),
        *("GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"),
        *("Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax"),
        *("Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization"),
        *("LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul"),
        *("Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg"),
        *("Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RNN"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence"),
        *("Round", "Scan", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign"),
        *("Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt"),
        *("Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu"),
        *("Unsqueeze", "Upsample", "Where", "Xor"),
    }
)

OPERATORS: dict[str, frozenset[str]] = {
    "tensorrt": _BOTH | {"DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"},
    "tensorrt-rtx": _BOTH
    | {"BlackmanWindow", "HammingWindow", "HannWindow", "RMSNormalization", "RotaryEmbedding", "STFT", "Swish"},
}
"""Operators of ONNX's own domain, by flavour. No flavour's table has one of another domain."""

INT4_WEIGHTS: frozenset[str] = frozenset({"tensorrt", "tensorrt-rtx"})
"""Flavours that take 4-bit weights behind a DequantizeLinear by blocks."""


def takes(flavour: str, node: ir.Node) -> str | None:
    """None where ``flavour`` takes a node, otherwise why not.

    Raises:
        KeyError: no such flavour.
    """
    if node.domain not in ("", "ai.onnx"):
        return f"{flavour} takes no operator of {node.domain}"
    if node.op_type not in OPERATORS[flavour]:
        purpose = " (mixtures of experts find each expert's tokens by it)" if node.op_type == "NonZero" else ""
        return f"{flavour} does not take {node.op_type}{purpose}"
    if flavour == "tensorrt-rtx" and node.op_type in ("ScatterElements", "ScatterND"):
        reduction = node.attributes.get("reduction")
        if reduction is not None and reduction.as_string() != "none":
            return f"{flavour} takes {node.op_type} without reduction only, not with {reduction.as_string()}"
    if node.op_type == "LayerNormalization" and any(
        value.uses() or value.is_graph_output() for value in node.outputs[1:]
    ):
        return f"{flavour} takes LayerNormalization with one result only"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _quantised(flavour, node)
    return None


def _quantised(flavour: str, node: ir.Node) -> str | None:
    """Zero points must be zero, and so 8-bit numbers signed: an unsigned one without a zero point is not symmetric."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        quantised = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        kind = quantised.dtype.name if quantised is not None and quantised.dtype is not None else ""
        if node.op_type == "QuantizeLinear" and "output_dtype" not in node.attributes:
            kind = "UINT8"
        return f"{flavour} takes signed quantised numbers only, not {kind}" if kind.startswith("UINT") else None
    tensor = zero.const_value
    if tensor is None:
        producer = zero.producer()
        if producer is None or producer.op_type != "Constant" or "value" not in producer.attributes:
            return f"{flavour} takes zero points that are constant and zero only"
        tensor = producer.attributes["value"].as_tensor()
    if tensor.dtype.name.startswith("UINT"):
        return f"{flavour} takes signed quantised numbers only, not {tensor.dtype.name}"
    if tensor.numpy().astype("float32").any():
        return f"{flavour} takes a zero point of zero only"
    return None
