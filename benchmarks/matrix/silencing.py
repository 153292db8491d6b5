"""Zero the attention exits in an exported file, found by their values: the reference without a second export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.matrix.models import Family

Array = NDArray[Any]
_EXITS = "exits.npz"


def save_exits(model: Any, row: Family, folder: Path) -> None:
    """Write the exit parameters of every stack and layer beside the graphs of the model."""
    arrays = {
        f"{stack}|{layer}|{name}": parameter.detach().cpu().numpy()
        for stack in row.stacks
        for layer, exits in enumerate(row.attention_exits(model, stack))
        for name, parameter in exits.items()
    }
    np.savez(folder / _EXITS, **arrays)


def read_exits(base: Path, stack: str, layers: tuple[int, ...]) -> list[Array]:
    """The exit parameters of these layers, as the export of the base model left them in its folder."""
    with np.load(base / _EXITS) as arrays:
        wanted = [name for name in arrays.files if _owner(name) in {(stack, layer) for layer in layers}]
        return [arrays[name] for name in wanted]


def _owner(name: str) -> tuple[str, int]:
    stack, layer, _ = name.split("|")
    return stack, int(layer)


def silence_initializers(graph: Path, exits: list[Array], output: Path) -> bool:
    """Write a copy in which every tensor with the values of an exit, as it is or transposed, is zero.

    The weights are random, so equal values mean the same parameter. False, and nothing written, when one is not found:
    then the exporter packed, quantised or folded it, and only an export of the silenced model tells the truth.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(graph)
    tensors: dict[bytes, list[Any]] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensors.setdefault(numpy_helper.to_array(tensor).tobytes(), []).append(tensor)
    for exit_values in exits:
        copies = tensors.get(exit_values.tobytes(), []) + tensors.get(np.ascontiguousarray(exit_values.T).tobytes(), [])
        if not copies or exit_values.dtype != np.float32:
            return False
        for tensor in copies:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))
    onnx.save(model, output)
    return True


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            elif attribute.HasField("g"):
                yield from _tensors(attribute.g)
