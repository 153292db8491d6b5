"""Safetensors by range: a header of names, types, shapes and places, then nothing but the tensors that are asked for.

The format (github.com/huggingface/safetensors, "Format"): eight bytes, the header's length as little-endian uint64; the
header, a JSON object; the data, which the tensors cover without holes or overlaps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from gatenorm_export.checkpoints.dtypes import BITS, NUMPY
from gatenorm_export.checkpoints.ranges import ByteReader, Folder, Opened, read_json
from gatenorm_export.checkpoints.tensors import Listing, StoredTensor, TensorInfo
from gatenorm_export.errors import InputError
from gatenorm_export.small_files import parse_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# The format's own limit: it keeps a lying length from asking for all memory.
_LARGEST_HEADER_BYTES = 100_000_000
_LARGEST_RANK = 32


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a header; ``begin`` and ``end`` count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsSource:
    """The tensors of one file, or of the shards that an index names. A shard is opened when one of its tensors is."""

    def __init__(self, folder: Folder, *, file: str | None = None, weight_map: Mapping[str, str] | None = None) -> None:
        """Tensors of ``file``, or of the shards in ``weight_map`` (tensor name -> file name)."""
        self._folder = folder
        self._opened = Opened(folder)
        self._headers: dict[str, dict[str, Entry]] = {}
        if file is not None:
            weight_map = dict.fromkeys(self._header(file), file)
        assert weight_map is not None
        self._holder = weight_map
        self.tensors: Mapping[str, TensorInfo] = Listing(self._holder, self.info)
        self.fields: Mapping[str, Any] = {}

    def read(self, name: str) -> StoredTensor:
        """See :class:`gatenorm_export.checkpoints.TensorSource`."""
        entry = self.entry(name)
        dtype = NUMPY.get(entry.dtype)
        if dtype is None:
            where = f"{self._folder.where(self._holder[name])}: tensor {name}"
            raise InputError(f"{where} is stored as {entry.dtype}, which weights cannot be read from")
        data = self._opened.reader(self._holder[name]).read(entry.begin, entry.end - entry.begin)
        return StoredTensor(data.view(dtype).reshape(entry.shape), data)

    def entry(self, name: str) -> Entry:
        """The header's entry of a tensor, from the shard that holds it.

        Raises:
            InputError: no file holds it, or the shard that should is missing or damaged.
        """
        file = self._holder.get(name)
        if file is None:
            raise InputError(f"{self._folder.name}: tensor {name} is in none of the safetensors files")
        entry = self._header(file).get(name)
        if entry is None:
            raise InputError(f"{self._folder.where(file)}: tensor {name} is not in it, but the index says so")
        return entry

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def _header(self, file: str) -> dict[str, Entry]:
        if file not in self._headers:
            self._headers[file] = read_header(self._opened.reader(file))
        return self._headers[file]

    def info(self, name: str) -> TensorInfo:
        """One row of the table."""
        entry = self.entry(name)
        return TensorInfo(
            name=name,
            shape=entry.shape,
            dtype=entry.dtype,
            nbytes=entry.end - entry.begin,
            file=self._folder.where(self._holder[name]),
        )

    @property
    def where(self) -> str:
        """The folder, for messages."""
        return self._folder.name

    @property
    def names(self) -> Mapping[str, str]:
        """Tensor name -> file name; nothing is opened to tell."""
        return self._holder


def read_weight_map(folder: Folder, index: str = INDEX) -> dict[str, str]:
    """Tensor name -> shard, as an index has it.

    Raises:
        InputError: it is damaged, empty, or names something that is not a file of its own folder.
    """
    weight_map = read_json(folder, index).get("weight_map")
    where = folder.where(index)
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{where}: has no weight_map")
    for name, shard in weight_map.items():
        # A name with a slash, or "..", would lead out of the folder; a backslash does on Windows.
        plain = isinstance(shard, str) and PurePosixPath(shard).name == shard and shard not in {"", ".", ".."}
        if not plain or "\\" in shard or ":" in shard:
            raise InputError(f"{where}: names {shard} for {name}, which is not a file of this folder; refused")
    return weight_map


def read_header(reader: ByteReader) -> dict[str, Entry]:
    """Read and check a file's header: every length and place in it is compared with the file's size.

    Raises:
        InputError: the file is no safetensors, or is damaged.
    """

    def damaged(reason: str) -> InputError:
        return InputError(f"{reader.name}: not readable safetensors ({reason}); copy it again")

    if reader.size < 8:
        raise damaged(f"it has {reader.size} bytes")
    length = int.from_bytes(reader.read(0, 8).tobytes(), "little")
    if length > _LARGEST_HEADER_BYTES:
        raise damaged(f"its header would have {length} bytes")
    if 8 + length > reader.size:
        raise damaged(f"its header would end at byte {8 + length} of {reader.size}")
    text = reader.read(8, length).tobytes()
    header = parse_json(text, lambda reason: damaged(f"header: {reason}"), unique=True)
    if not isinstance(header, dict):
        raise damaged("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged("its __metadata__ is no table of strings")
    start = 8 + length
    entries = {name: _entry(name, value, start, reader.size, damaged) for name, value in header.items()}
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            what = "overlaps the one before it" if entry.begin < end else "leaves a hole before it"
            raise damaged(f"tensor {name} {what}")
        end = entry.end
    if end != reader.size:
        raise damaged(f"its tensors end at byte {end} of {reader.size}")
    return entries


def _entry(name: str, value: Any, start: int, size: int, damaged: Callable[[str], InputError]) -> Entry:
    value = value if isinstance(value, dict) else {}
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise damaged(f"tensor {name} has the type {str(dtype)[:40]}, which the format does not know")
    if not _naturals(shape) or len(shape) > _LARGEST_RANK:
        raise damaged(f"tensor {name} has the shape {str(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise damaged(f"tensor {name} lies at {str(offsets)[:80]}")
    begin, end = (start + offset for offset in offsets)
    if not begin <= end <= size:
        raise damaged(f"tensor {name} would lie at bytes {begin} to {end} of {size}")
    if math.prod(shape) * bits != (end - begin) * 8:
        raise damaged(f"tensor {name} of {dtype} {shape} has {end - begin} bytes")
    return Entry(str(dtype), tuple(shape), begin, end)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    # No file has more bytes; what is longer than Python writes out could not even be named.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
