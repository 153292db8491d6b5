"""torch.onnx.export, both of its exporters: the dynamo-based one (opsets 18, 23, 24) and the older TorchScript one.

Each ``export_*`` function takes a transformers model in eval mode, the row it was made from, and a folder; it writes
``model.onnx`` there and returns its path. Batch, new tokens and past are dynamic.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from benchmarks.matrix.exporters.dynamic_cache_pytree import register_dynamic_cache
from benchmarks.matrix.exporters.export_context import (
    export_failures,
    exportable_experts,
    forward_of,
)
from benchmarks.matrix.exporters.quiet import quiet_export
from benchmarks.matrix.exporters.traced_example import (
    Lengths,
    Naming,
    decoder_example,
    encoder_example,
    flat_arguments,
    flat_dynamic,
    flat_module,
    is_decoder,
)


def export_18(model: Any, row: Any, folder: Path) -> Path:
    """Dynamo, opset 18, with KV cache; ends named as torch names them by itself."""
    return _export(model, folder, opset=18)


def export_23(model: Any, row: Any, folder: Path) -> Path:
    """Dynamo, opset 23: scaled_dot_product_attention becomes ai.onnx Attention."""
    return _export(model, folder, opset=23)


def export_24(model: Any, row: Any, folder: Path) -> Path:
    """Dynamo, opset 24, with one symbol for the past of all layers."""
    return _export(model, folder, opset=24, lengths="shared")


def export_18_optimum_names(model: Any, row: Any, folder: Path) -> Path:
    """Dynamo, opset 18, with KV cache under optimum's names, so that optimum's clients can run the graph."""
    return _export(model, folder, opset=18, naming="optimum", lengths="named")


def export_18_no_past(model: Any, row: Any, folder: Path) -> Path:
    """Dynamo, opset 18, without KV cache."""
    return _export(model, folder, opset=18, past=False)


def export_23_no_past(model: Any, row: Any, folder: Path) -> Path:
    """Dynamo, opset 23, without KV cache."""
    return _export(model, folder, opset=23, past=False)


def export_torchscript(model: Any, row: Any, folder: Path) -> Path:
    """The TorchScript-based exporter (dynamo=False), opset 18, with KV cache.

    Under transformers 4 it fails on decoders whose masks are made with vmap, which tracing cannot follow.
    """
    return _export(model, folder, opset=18, dynamo=False)


def _export(
    model: Any,
    folder: Path,
    *,
    opset: int,
    naming: Naming = "torch",
    lengths: Lengths = "free",
    past: bool = True,
    dynamo: bool = True,
) -> Path:
    import torch

    path = folder / "model.onnx"
    with contextlib.ExitStack() as stack, quiet_export(), export_failures(), torch.no_grad():
        example = decoder_example(model, naming, lengths, past=past) if is_decoder(model) else encoder_example(model)
        use_cache = past and is_decoder(model)
        stack.enter_context(exportable_experts(model))
        if dynamo:
            register_dynamic_cache()
            stack.enter_context(forward_of(model, list(example.arguments), use_cache=use_cache))
            torch.onnx.export(
                model,
                (),
                path,
                kwargs=example.arguments,
                input_names=example.input_names,
                output_names=example.output_names,
                dynamic_shapes=example.dynamic,
                opset_version=opset,
                dynamo=True,
                external_data=False,
            )
        else:
            torch.onnx.export(
                flat_module(model, example),
                tuple(flat_arguments(example)),
                path,
                input_names=example.input_names,
                output_names=example.output_names,
                dynamic_axes=dict(zip(example.input_names, flat_dynamic(example), strict=True)),
                opset_version=opset,
                dynamo=False,
            )
    return path
