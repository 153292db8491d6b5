"""Files and folders as ranges of bytes, so that a reader of a format need not know whether they are local or remote."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import xxhash

from gatenorm_export.errors import InputError
from gatenorm_export.small_files import LARGEST_BYTES, inside, open_plain, parse_json

Bytes = np.ndarray
"""A one-dimensional array of uint8 that nobody else writes to."""

# A mapping costs a few system calls, and whole pages at either end.
_MAP_FROM_BYTES = 1 << 20

# MADV_POPULATE_READ of Linux 5.14: all pages of a mapping are read at once. Older kernels do not know the number.
_POPULATE_READ = 22 if sys.platform == "linux" else None
# Files that were mapped, and how long they were, for whoever must tell why a page is gone.
_MAPPED: dict[str, int] = {}


class ByteReader(Protocol):
    """A file of known size, read by range."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read(self, offset: int, length: int) -> Bytes:
        """Exactly ``length`` bytes from ``offset`` on.

        Raises:
            InputError: the file ends before, or its source does not answer; the text names the file.
        """

    def close(self) -> None:
        """Give back what the reader holds."""


class Folder(Protocol):
    """A place that holds files by plain names: a directory, or the part of a URL before the last slash."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def remote(self) -> bool:
        """Whether its bytes come over a network."""

    def where(self, file: str) -> str:
        """Path or URL of one of its files, for messages."""

    def has(self, file: str) -> bool:
        """Whether the file is there.

        Raises:
            InputError: that cannot be told; the source does not answer.
        """

    def open(self, file: str) -> ByteReader:
        """Open one of its files.

        Raises:
            InputError: it is not there, or cannot be read.
        """


class LocalFile:
    """A file on disk.

    Large ranges are mapped, each by itself and for as long as its array lives: from the page cache that is several
    times faster than a copy, and unlike one mapping of the whole file it does not grow with what was read before.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            InputError: it is not there, no plain file, or may not be read.
        """
        self._path = path
        self._file = os.fdopen(open_plain(path), "rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        return self._size

    def read(self, offset: int, length: int) -> Bytes:
        """See :class:`ByteReader`."""
        check_range(self, offset, length)
        try:
            # A mapping that reaches past the end would end the process when it is read, not raise an error.
            if os.fstat(self._file.fileno()).st_size < offset + length:
                raise InputError(f"{self.name}: became shorter while it was read; copy it again")
            return self._mapped(offset, length) if length >= _MAP_FROM_BYTES else self._copied(offset, length)
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror})") from error

    def _mapped(self, offset: int, length: int) -> Bytes:
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        # Pages are copied when somebody writes to them: the array may be changed, the file is not.
        _MAPPED[self.name] = self._size
        window = mmap.mmap(self._file.fileno(), offset - start + length, access=mmap.ACCESS_COPY, offset=start)
        if _POPULATE_READ is not None:
            # Else every few pages cost a fault when they are first read, together as much as digesting them.
            with contextlib.suppress(OSError):
                window.madvise(_POPULATE_READ)
        return np.frombuffer(window, dtype=np.uint8)[offset - start :]

    def _copied(self, offset: int, length: int) -> Bytes:
        buffer = np.empty(length, dtype=np.uint8)
        view, done = buffer.data, 0
        self._file.seek(offset)
        while done < length:
            count = self._file.readinto(view[done:])
            if not count:
                raise InputError(f"{self.name}: became shorter while it was read; copy it again")
            done += count
        return buffer

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def shortened() -> str | None:
    """Which of the files that were mapped is shorter now than when it was opened."""
    for name, size in _MAPPED.items():
        with contextlib.suppress(OSError):
            if Path(name).stat().st_size < size:
                return name
    return None


class LocalFolder:
    """A directory. Links that lead out of it are refused, but for ``named``, the file that a user named himself."""

    remote = False

    def __init__(self, path: Path, named: str | None = None) -> None:
        self._path, self._named = path, named

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    def where(self, file: str) -> str:
        """The file's path."""
        return str(self._path / file)

    def has(self, file: str) -> bool:
        """Whether a plain file, or a link to one, has that name."""
        return self._place(file).is_file()

    def open(self, file: str) -> LocalFile:
        """Open one of its files."""
        return LocalFile(self._place(file))

    def _place(self, file: str) -> Path:
        return self._path / file if file == self._named else inside(self._path, file)


class Opened:
    """Readers that were opened on the way, each file once, to be closed together."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._readers: dict[str, ByteReader] = {}

    def reader(self, file: str) -> ByteReader:
        """The reader of a file of the folder."""
        if file not in self._readers:
            self._readers[file] = self.folder.open(file)
        return self._readers[file]

    def close(self) -> None:
        """Close every reader."""
        while self._readers:
            self._readers.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def digest_of(*parts: np.ndarray) -> str:
    """xxh3-128 of bytes as they are stored, one part after the other, in hex."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part.data)
    return state.hexdigest()


def check_range(reader: ByteReader, offset: int, length: int) -> None:
    """Refuse a range that does not lie in the file.

    Raises:
        InputError: it does not.
    """
    if offset < 0 or length < 0 or offset + length > reader.size:
        raise InputError(
            f"{reader.name}: bytes {offset} to {offset + length} are wanted of {reader.size}; it is cut off, "
            "fetch it again"
        )


def read_json(folder: Folder, file: str, *, hint: str = "") -> dict[str, Any]:
    """Read a JSON object from a folder; ``hint`` ends the message where the file is not there.

    Raises:
        InputError: not there, not JSON, or no object.
    """
    where = folder.where(file)
    if not folder.has(file):
        raise InputError(f"{where}: not there" + (f"; {hint}" if hint else ""))
    reader = folder.open(file)
    try:
        if reader.size > LARGEST_BYTES:
            raise InputError(f"{where}: not readable JSON (it has {reader.size} bytes)")
        value = parse_json(reader.read(0, reader.size).tobytes(), lambda reason: InputError(f"{where}: {reason}"))
    finally:
        reader.close()
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a JSON object")
    return value
