"""What ONNX Runtime's tools make of a graph: fused, saved from a session, in half precision, quantised, stripped.

Every function is a transformation: it reads ``graph`` and writes a new file into ``folder``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.matrix.exporters.quiet import quiet_export
from benchmarks.matrix.models import D_MODEL, Family

# The optimizer's own names for the fusions it knows; "bert" is its default for what it does not name.
_FUSIONS = {
    "gpt2": "gpt2",
    "gpt-neox": "gpt_neox",
    "gpt-neox-sequential": "gpt_neox",
    "qwen3": "qwen3",
    "vit": "vit",
    "clip-vision": "clip",
}


def optimizer(graph: Path, row: Family, folder: Path) -> Path:
    """onnxruntime.transformers.optimizer with the model type it has for the family."""
    return _fuse(graph, row, folder, _FUSIONS.get(row.name, "bert"))


def optimizer_multi_head(graph: Path, row: Family, folder: Path) -> Path:
    """The same, fusing into MultiHeadAttention (separate q, k, v) where the default is packed Attention."""
    return _fuse(graph, row, folder, _FUSIONS.get(row.name, "bert"), multi_head=True)


def _fuse(graph: Path, row: Family, folder: Path, model_type: str, *, multi_head: bool = False) -> Path:
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions(model_type)
    options.use_multi_head_attention = multi_head
    with quiet_export():
        # Level 0 leaves the session's own optimisations out, which hide rotary embeddings from the fusions.
        fused = optimize_model(
            str(graph), model_type, num_heads=4, hidden_size=D_MODEL, optimization_options=options, opt_level=0
        )
        fused.save_model_to_file(str(folder / graph.name))
    return folder / graph.name


def session_extended(graph: Path, row: Family, folder: Path) -> Path:
    """What a session writes after its "extended" optimisations for the CPU."""
    return _session(graph, folder, "ORT_ENABLE_EXTENDED")


def session_basic(graph: Path, row: Family, folder: Path) -> Path:
    """What a session writes after its "basic" optimisations."""
    return _session(graph, folder, "ORT_ENABLE_BASIC")


def _session(graph: Path, folder: Path, level: str) -> Path:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / graph.name)
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return folder / graph.name


def float16(graph: Path, row: Family, folder: Path) -> Path:
    """onnxruntime's converter, inputs and outputs too."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet_export():
        model = convert_float_to_float16(onnx.load(graph), keep_io_types=False, force_fp16_initializers=True)
    onnx.save(model, folder / graph.name)
    return folder / graph.name


def bfloat16(graph: Path, row: Family, folder: Path) -> Path:
    """Every float32 becomes bfloat16, as a training framework would write it."""
    import onnx

    from benchmarks.matrix.retyping import retype

    onnx.save(retype(onnx.load(graph), onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16), folder / graph.name)
    return folder / graph.name


def qdq(graph: Path, row: Family, folder: Path, *, base: Path | None = None) -> Path:
    """Static 8-bit quantisation in QDQ form: products, and sums of two activations such as the residual's."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    ranges = folder / "ranges.json"
    if base is not None:
        shutil.copyfile(base.parent / ranges.name, ranges)
    with quiet_export():
        quantize_static(
            graph,
            folder / graph.name,
            _Calibration(graph) if base is None else None,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_quantisable(graph),
            calibration_cache_path=ranges,
        )
    return folder / graph.name


def _quantisable(graph: Path) -> list[str]:
    """Products, and sums of two activations except of masks: 8 bits from -3e38 up would leave nothing of the scores."""
    import onnx

    model = onnx.load(graph).graph
    constants = {tensor.name for tensor in model.initializer}
    constants |= {node.output[0] for node in model.node if node.op_type == "Constant"}
    products = ("MatMul", "Gemm")
    makers = {output: node for node in model.node for output in node.output if node.op_type not in products}
    # Whatever a softmax sees without a product in between: scores and masks.
    waiting = [node.input[0] for node in model.node if node.op_type == "Softmax"]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in makers and name not in seen:
            seen.add(name)
            waiting += makers[name].input
    sums = [
        node.name
        for node in model.node
        if node.op_type == "Add" and node.output[0] not in seen and not constants.intersection(node.input)
    ]
    return sums + [node.name for node in model.node if node.op_type in products]


class _Calibration:
    """A few random batches in the form that the quantiser asks for."""

    def __init__(self, graph: Path) -> None:
        from benchmarks.matrix.running import Runner

        self._feeds = iter([Runner.load(graph, optimise=False).example(seed) for seed in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, None after the last."""
        return next(self._feeds, None)


def dynamic_int8(graph: Path, row: Family, folder: Path) -> Path:
    """Dynamic 8-bit quantisation: MatMulInteger and DynamicQuantizeLinear."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet_export():
        quantize_dynamic(graph, folder / graph.name, weight_type=QuantType.QInt8)
    return folder / graph.name


def int4(graph: Path, row: Family, folder: Path) -> Path:
    """4-bit weights: MatMulNBits in place of every MatMul with a constant."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with quiet_export():
        quantizer = MatMulNBitsQuantizer(onnx.load(graph), bits=4, block_size=32, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(folder / graph.name))
    return folder / graph.name


def stripped(graph: Path, row: Family, folder: Path) -> Path:
    """The same graph without node names, with meaningless value names, without metadata and shapes inside."""
    import onnx

    model = onnx.load(graph)
    names: dict[str, str] = {value.name: value.name for value in [*model.graph.input, *model.graph.output]}
    _strip(model.graph, names)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.producer_name = model.producer_version = model.doc_string = model.graph.doc_string = ""
    onnx.save(model, folder / graph.name)
    return folder / graph.name


def _strip(graph: Any, names: dict[str, str]) -> None:
    def renamed(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}") if name else ""

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
        tensor.doc_string = ""
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renamed(name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g, names)
                for value in attribute.g.output:
                    value.name = renamed(value.name)
        node.output[:] = [renamed(name) for name in node.output]
