"""From the place of a checkpoint to its open table of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gatenorm_export.checkpoints import torch_file
from gatenorm_export.checkpoints.gguf_file import GgufSource
from gatenorm_export.checkpoints.onnx_file import OnnxSource
from gatenorm_export.checkpoints.packed import UnpackedSource, is_packed
from gatenorm_export.checkpoints.ranges import Folder, LocalFolder, read_json
from gatenorm_export.checkpoints.remote import RemoteFolder, split_url
from gatenorm_export.checkpoints.safetensors_file import INDEX, SINGLE, SafetensorsSource, read_weight_map
from gatenorm_export.checkpoints.tensors import TensorSource
from gatenorm_export.checkpoints.torch_file import TorchSource
from gatenorm_export.errors import InputError
from gatenorm_export.graphs import graph_file
from gatenorm_export.urls import is_remote

FILE_SUFFIXES = frozenset({".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx"})


def folder_of(place: str) -> tuple[Folder, str | None]:
    """The folder of a path or URL, and the file in it where it is a file's.

    Raises:
        InputError: it is a URL that makes no sense.
        MissingPartError: reading from there needs a package that is not installed.
    """
    if is_remote(place):
        folder, file = split_url(place)
        if PurePosixPath(file).suffix in FILE_SUFFIXES:
            return RemoteFolder(folder), file
        return RemoteFolder(place), None
    path = Path(place)
    return (LocalFolder(path), None) if path.is_dir() else (LocalFolder(path.parent, named=path.name), path.name)


@contextlib.contextmanager
def open_checkpoint(source: str, place: str) -> Iterator[TensorSource]:
    """Open what lies at ``place``, a path or a URL of a folder or of a file.

    Raises:
        InputError: it is missing, incomplete or damaged.
        MissingPartError: its kind of source needs a package that is not installed.
    """
    folder, file = folder_of(place)
    opened: GgufSource | SafetensorsSource | TorchSource | OnnxSource
    if source == "gguf":
        if file is None:
            raise InputError(f"{place}: is a folder; name the .gguf file")
        opened = GgufSource(folder, file)
    elif source == "onnx":
        opened = OnnxSource(graph_file(Path(place)))
    elif source == "torch":
        root = Path(place) if file is None else Path(place).parent
        file = file or (torch_file.SINGLE if folder.has(torch_file.SINGLE) else None)
        weight_map = None if file else read_weight_map(folder, torch_file.INDEX)
        opened = TorchSource(root, file=file, weight_map=weight_map)
    elif file is not None or folder.has(SINGLE):
        opened = SafetensorsSource(folder, file=file or SINGLE)
    else:
        opened = SafetensorsSource(folder, weight_map=read_weight_map(folder, INDEX))
    with contextlib.closing(opened):
        if isinstance(opened, SafetensorsSource | TorchSource) and is_packed(opened.names):
            yield UnpackedSource(opened, _quantisation(folder))
        else:
            yield opened


def _quantisation(folder: Folder) -> dict[str, Any]:
    """What the config says of the quantiser; AutoGPTQ wrote a file of its own."""
    config = read_json(folder, "config.json") if folder.has("config.json") else {}
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        found = read_json(folder, "quantize_config.json") if folder.has("quantize_config.json") else {}
    return found
