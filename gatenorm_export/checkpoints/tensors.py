"""What scoring needs of a checkpoint, wherever it lies: the table of its tensors, and one tensor at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gatenorm_export.checkpoints.ranges import digest_of


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the checkpoint lists it. ``shape`` is that of the weights; packing and quantisation are undone."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Bytes that reading the tensor takes from the source, scales and zero points included."""
    file: str
    """Where it lies, for messages."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that was read: its values, in the stored precision where numpy has it and else dequantised to float32.

    ``stored`` are the bytes as they are stored, or already their digest.
    """

    values: np.ndarray
    stored: np.ndarray | str

    @functools.cached_property
    def digest(self) -> str:
        """xxh3-128 of the bytes as they are stored, in hex, made when it is asked for: on a mapped file this is what
        reads them."""
        return self.stored if isinstance(self.stored, str) else digest_of(self.stored)


class Listing(Mapping[str, TensorInfo]):
    """The table of tensors of a checkpoint in shards: names come from its index; asking for a row opens a shard, and
    only that one."""

    def __init__(self, names: Mapping[str, str], row: Callable[[str], TensorInfo]) -> None:
        self._names, self._row = names, row

    def __getitem__(self, name: str) -> TensorInfo:
        if name not in self._names:
            raise KeyError(name)
        return self._row(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TensorSource(Protocol):
    """An open checkpoint."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """What it says of the model itself: GGUF's metadata, an ONNX graph's towers; empty where a config.json does."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its stored name; nothing but headers has been read."""

    def read(self, name: str) -> StoredTensor:
        """Read one tensor. May be called from another thread than the one that opened the source, one at a time.

        Raises:
            InputError: it is missing, damaged, packed in a way that cannot be undone, or its source does not answer;
                the text names file and tensor.
        """
