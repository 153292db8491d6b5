"""Copying ranges of large files into a new one: in the kernel where it can, holes staying holes, nothing in memory."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gatenorm_export.errors import InputError

# Where the kernel cannot copy, this much passes through memory at a time.
_BUFFER_BYTES = 4 * 1024 * 1024
_KERNEL_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


@dataclass(frozen=True)
class ByteRange:
    """``length`` bytes of ``source`` from ``offset`` on, to be written at ``target`` of the new file."""

    source: Path
    offset: int
    length: int
    target: int

    @property
    def end(self) -> int:
        """The first byte of the new file after the range."""
        return self.target + self.length


def copy_ranges(ranges: Sequence[ByteRange], target: Path) -> None:
    """Write ``target`` from ranges of other files; what no range covers is zero.

    Raises:
        InputError: a source cannot be read, or ends before the range does.
        OSError: the target cannot be written; the disk may be full.
    """
    with contextlib.ExitStack() as opened, target.open("wb", buffering=0) as out:
        handles = {source: opened.enter_context(_reading(source)) for source in {piece.source for piece in ranges}}
        # Everything that is not written below is a hole, and reads as zeros.
        out.truncate(max((piece.end for piece in ranges), default=0))
        for piece in ranges:
            source = handles[piece.source]
            for start, length in _data_extents(source, piece.offset, piece.length):
                if not _copy(source, out.fileno(), start, piece.target + start - piece.offset, length):
                    raise InputError(f"{piece.source}: became shorter while it was copied; restore it and try again")


def data_bytes(ranges: Sequence[ByteRange]) -> int:
    """How much room a copy of the ranges takes on disk: their bytes without the sources' holes.

    Raises:
        InputError: a source cannot be read.
    """
    total = 0
    for source in {piece.source for piece in ranges}:
        with _reading(source) as handle:
            for piece in ranges:
                if piece.source == source:
                    total += sum(length for _, length in _data_extents(handle, piece.offset, piece.length))
    return total


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[int]:
    try:
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror}); check its permissions") from error
    with file:
        yield file.fileno()


def _data_extents(handle: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that the file system stores; all of it where it does not tell."""
    seek_data, seek_hole = getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None)
    end = offset + length
    if seek_data is None or seek_hole is None:
        yield offset, length
        return
    while offset < end:
        try:
            start = os.lseek(handle, offset, seek_data)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            start = offset
        if start >= end:
            return
        try:
            stop = min(os.lseek(handle, start, seek_hole), end)
        except OSError:
            stop = end
        yield start, stop - start
        offset = stop


def _copy(source: int, target: int, start: int, to: int, length: int) -> bool:
    """Copy from handle to handle; whether the source had that many bytes."""
    kernel = getattr(os, "copy_file_range", None)
    while length:
        if kernel is not None:
            try:
                copied = kernel(source, target, length, start, to)
            except OSError as error:
                if error.errno not in _KERNEL_CANNOT:
                    raise
                kernel = None
                continue
        else:
            os.lseek(source, start, os.SEEK_SET)
            os.lseek(target, to, os.SEEK_SET)
            copied = os.write(target, os.read(source, min(length, _BUFFER_BYTES)))
        if copied == 0:
            return False
        start, to, length = start + copied, to + copied, length - copied
    return True
