"""Checkpoints as tables of tensors: safetensors, GGUF, pickled state dicts, ONNX graphs, local and remote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gatenorm_export.checkpoints.opening import open_checkpoint
from gatenorm_export.checkpoints.tensors import StoredTensor, TensorInfo, TensorSource
from gatenorm_export.records import ModelSpec


@contextlib.contextmanager
def open_tensors(spec: ModelSpec) -> Iterator[TensorSource]:
    """Open the checkpoint of ``spec`` for reading single tensors; only headers are read.

    Raises:
        InputError: it is missing, incomplete or damaged.
        MissingPartError: its kind of source needs a package that is not installed.
    """
    with open_checkpoint(spec.source, spec.path) as source:
        yield source


__all__ = ["StoredTensor", "TensorInfo", "TensorSource", "open_checkpoint", "open_tensors"]
