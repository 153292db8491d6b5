"""GGUF by range: metadata and the table of tensors, then the tensors that are asked for, dequantised by gguf.

The format (ggml's docs/gguf.md): magic, version, number of tensors, number of key-value pairs; the pairs; of each
tensor name, dimensions (fastest first), type and offset; the data, aligned. gguf's own reader trusts every count in the
file and holds each token of the vocabulary as an array; here each count is held against the bytes that are left.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from gatenorm_export.checkpoints.ranges import ByteReader, Folder, Opened, digest_of
from gatenorm_export.checkpoints.tensors import StoredTensor, TensorInfo
from gatenorm_export.errors import InputError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS: dict[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Vocabularies, their scores and merges are long lists that no reader of weights needs; they are stepped over.
_LONGEST_KEPT = 4096
_LARGEST_RANK = 4
_ALIGNMENT = 32
_LONGEST_NAME = 65535
_FETCH_BYTES = 1 << 20
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
_PLAIN: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


@dataclasses.dataclass(frozen=True)
class _Place:
    file: str
    offset: int
    kind: int
    info: TensorInfo


@dataclasses.dataclass(frozen=True)
class _Contents:
    fields: dict[str, Any]
    places: dict[str, _Place]


class GgufSource:
    """The tensors of a GGUF file, or of all parts of a split one."""

    def __init__(self, folder: Folder, file: str) -> None:
        """Read the headers of ``file`` and, where it is part of a split checkpoint, of the other parts.

        Raises:
            InputError: a file is damaged, or a part is missing.
        """
        self._folder = folder
        self._opened = Opened(folder)
        self.fields: Mapping[str, Any] = {}
        self._places: dict[str, _Place] = {}
        self._file = file
        try:
            for part in gguf_parts(folder, file):
                contents = _read_contents(self._opened.reader(part), part)
                twice = next((name for name in contents.places if name in self._places), None)
                if twice is not None:
                    raise InputError(f"{folder.where(part)}: tensor {twice} is in another part too; fetch them again")
                # The first part describes the model, the others only themselves.
                self.fields = self.fields or contents.fields
                self._places |= contents.places
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = {name: place.info for name, place in self._places.items()}

    def read(self, name: str) -> StoredTensor:
        """See :class:`gatenorm_export.checkpoints.TensorSource`."""
        place = self._places.get(name)
        if place is None:
            raise InputError(f"{self._folder.where(self._file)}: tensor {name} is missing")
        where = f"{place.info.file}: tensor {name}"
        if place.info.dtype.startswith("type "):
            raise InputError(f"{where} cannot be dequantised (GGUF {place.info.dtype} is not known here)")
        data = self._opened.reader(place.file).read(place.offset, place.info.nbytes)
        digest = digest_of(data)
        plain = _PLAIN.get(place.info.dtype)
        if plain is not None:
            return StoredTensor(data.view(plain).reshape(place.info.shape), digest)
        from gguf import GGMLQuantizationType, dequantize

        rows = data.reshape(*place.info.shape[:-1], -1)
        try:
            values = dequantize(rows, GGMLQuantizationType(place.kind))
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"{where} cannot be dequantised ({error})") from error
        return StoredTensor(np.asarray(values).reshape(place.info.shape), digest)

    def close(self) -> None:
        """Close the files."""
        self._opened.close()


def gguf_parts(folder: Folder, file: str) -> tuple[str, ...]:
    """The file, or all parts of the split checkpoint that it belongs to (``NAME-00001-of-00003.gguf``).

    Raises:
        InputError: a part is not there, or the number in the name makes no sense.
    """
    match = _PART.fullmatch(file)
    if match is None:
        return (file,)
    parts = int(match["parts"])
    if not 1 <= int(match["part"]) <= parts:
        raise InputError(f"{folder.where(file)}: is part {int(match['part'])} of {parts}; rename it as it was")
    names = [f"{match['stem']}-{part:05d}-of-{parts:05d}.gguf" for part in range(1, parts + 1)]
    for name in names:
        if not folder.has(name):
            raise InputError(f"{folder.where(name)}: a part of this split GGUF is not there; fetch it again")
    return tuple(names)


def read_gguf_fields(folder: Folder, file: str) -> dict[str, Any]:
    """The metadata of a GGUF file; long lists of strings, such as the vocabulary, are left out.

    Raises:
        InputError: it is damaged.
    """
    with Opened(folder) as opened:
        return _read_contents(opened.reader(gguf_parts(folder, file)[0]), file).fields


class _Header:
    """A cursor that never passes the end of the file, and fetches the header in pieces."""

    def __init__(self, reader: ByteReader, damaged: Callable[[str], InputError]) -> None:
        self._reader = reader
        self._damaged = damaged
        self._held = b""
        self._start = 0
        self.at = 0

    @property
    def left(self) -> int:
        return self._reader.size - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self._damaged(f"{count} bytes are wanted at byte {self.at} of {self._reader.size}")
        begin = self.at - self._start
        if begin < 0 or begin + count > len(self._held):
            length = min(max(count, _FETCH_BYTES), self.left)
            self._held, self._start, begin = self._reader.read(self.at, length).tobytes(), self.at, 0
        self.at += count
        return self._held[begin : begin + count]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self, longest: int | None = None) -> str:
        length = self.number("Q")
        if longest is not None and length > longest:
            raise self._damaged(f"a name of {length} bytes at byte {self.at}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"text at byte {self.at} is not UTF-8") from error

    def skip_string(self) -> None:
        length = self.number("Q")
        if length > self.left:
            raise self._damaged(f"a text of {length} bytes at byte {self.at} of {self._reader.size}")
        if self.at - self._start + length <= len(self._held):
            self.at += length
        else:
            self.take(length)


def _read_contents(reader: ByteReader, file: str) -> _Contents:
    def damaged(reason: str) -> InputError:
        return InputError(f"{reader.name}: not readable GGUF ({reason}); copy it again")

    header = _Header(reader, damaged)
    if reader.size < 24 or header.take(4) != _MAGIC:
        raise damaged("it does not begin with GGUF" if reader.size >= 24 else f"it has {reader.size} bytes")
    version = header.number("I")
    if version not in _VERSIONS:
        big = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise damaged("it is big-endian" if big else f"version {version}")
    n_tensors, n_fields = header.number("Q"), header.number("Q")
    # The shortest pair has a key of no bytes, a type and one byte; the shortest tensor a name of none and no dimension.
    if n_tensors * 24 > header.left or n_fields * 13 > header.left:
        raise damaged(f"it would hold {n_tensors} tensors and {n_fields} fields in {reader.size} bytes")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        key = header.string(_LONGEST_NAME)
        if key in fields:
            raise damaged(f"the field {key} stands in it twice")
        fields[key] = _field(header, header.number("I"), damaged)
    tensors = [_tensor(header, damaged) for _ in range(n_tensors)]
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise damaged(f"general.alignment is {alignment}")
    start = (header.at + alignment - 1) // alignment * alignment
    places: dict[str, _Place] = {}
    for name, shape, kind, offset in tensors:
        if name in places:
            raise damaged(f"tensor {name} stands in it twice")
        type_name, length = _stored(kind, shape, name, damaged)
        if start + offset + length > reader.size:
            raise damaged(f"tensor {name} would end at byte {start + offset + length} of {reader.size}")
        places[name] = _Place(file, start + offset, kind, TensorInfo(name, shape, type_name, length, reader.name))
    end, before = 0, ""
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        if place.offset < end:
            raise damaged(f"tensor {name} overlaps tensor {before}")
        end, before = place.offset + place.info.nbytes, name
    return _Contents({key: value for key, value in fields.items() if value is not None}, places)


def _field(header: _Header, kind: int, damaged: Callable[[str], InputError]) -> Any:
    """A value; None for a list that is too long to keep."""
    if kind in _SCALARS:
        return header.number(_SCALARS[kind])
    if kind == _STRING:
        return header.string()
    if kind != _ARRAY:
        raise damaged(f"a field has the type {kind}, which the format does not know")
    inner, count = header.number("I"), header.number("Q")
    if inner in _SCALARS:
        code = _SCALARS[inner]
        if count * struct.calcsize("<" + code) > header.left:
            raise damaged(f"a list of {count} numbers at byte {header.at}")
        content = header.take(count * struct.calcsize("<" + code))
        # As Python's numbers they would take up to 32 times their bytes; lists for each layer are short.
        return np.frombuffer(content, dtype=np.dtype("<" + code)).tolist() if count <= _LONGEST_KEPT else None
    if inner != _STRING:
        raise damaged(f"a list has items of the type {inner}")
    if count * 8 > header.left:
        raise damaged(f"a list of {count} texts at byte {header.at}")
    if count <= _LONGEST_KEPT:
        return [header.string() for _ in range(count)]
    for _ in range(count):
        header.skip_string()
    return None


def _tensor(header: _Header, damaged: Callable[[str], InputError]) -> tuple[str, tuple[int, ...], int, int]:
    name, rank = header.string(_LONGEST_NAME), header.number("I")
    if rank > _LARGEST_RANK:
        raise damaged(f"tensor {name[:80]} has {rank} dimensions")
    # Dimensions stand fastest first; weights are known as [out, in].
    shape = tuple(header.number("Q") for _ in range(rank))[::-1]
    return name, shape, header.number("I"), header.number("Q")


def _stored(kind: int, shape: tuple[int, ...], name: str, damaged: Callable[[str], InputError]) -> tuple[str, int]:
    """The name of a tensor's type, and its length; 0 where the type is newer than the gguf package."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        return f"type {kind}", 0
    block, nbytes = GGML_QUANT_SIZES[known]
    count = math.prod(shape)
    if count % block or (shape and shape[-1] % block):
        raise damaged(f"tensor {name} of {known.name} {list(shape)} does not fill blocks of {block}")
    return known.name, count // block * nbytes
