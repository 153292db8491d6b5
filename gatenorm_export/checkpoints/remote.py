"""Remote folders and files, read by range: retried when a source stumbles, kept on disk, refused when it is no use."""

from __future__ import annotations

import posixpath
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import numpy as np

from gatenorm_export.checkpoints.range_cache import RangeCache
from gatenorm_export.checkpoints.ranges import Bytes, check_range
from gatenorm_export.checkpoints.transports import (
    Answer,
    FilesystemTransport,
    HttpTransport,
    Missing,
    Transient,
    Transport,
    lacking,
)
from gatenorm_export.errors import InputError, needs
from gatenorm_export.urls import SCHEMES, shown

_T = TypeVar("_T")

_TRIES = 7
# A host that cannot be reached at all is more often misspelt than restarting.
_UNREACHABLE_TRIES = 3
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 120.0
# A range is fetched, retried and kept in pieces: large enough that asking does not count, small enough to lose.
_PIECE_BYTES = 8 << 20
_CONNECTIONS = 4
# Without ranges, a config or an index can still be fetched whole; weights not.
_LARGEST_WHOLE_BYTES = 64 << 20


class RemoteFile:
    """One remote file, whose first question has been answered."""

    def __init__(self, url: str, shown: str, transport: Transport, answer: Answer) -> None:
        self._shown, self._transport, self._answer = shown, transport, answer
        # A source that names no state cannot be asked whether what was kept is still true.
        state = answer.state
        self._cache = None if state is None else RangeCache(url, f"{state} {answer.size}")

    @property
    def name(self) -> str:
        """The URL, without user, password and query."""
        return self._shown

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._answer.size

    def read(self, offset: int, length: int) -> Bytes:
        """See :class:`gatenorm_export.checkpoints.ranges.ByteReader`."""
        check_range(self, offset, length)
        buffer = np.empty(length, dtype=np.uint8)
        if offset + length <= len(self._answer.first):
            buffer[:] = np.frombuffer(self._answer.first, dtype=np.uint8)[offset : offset + length]
            return buffer
        starts = range(0, length, _PIECE_BYTES)

        def fill(start: int) -> None:
            self._fill(offset + start, buffer[start : start + _PIECE_BYTES])

        if len(starts) == 1:
            fill(0)
        elif length:
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                pieces = [pool.submit(fill, start) for start in starts]
                try:
                    for piece in pieces:
                        piece.result()
                finally:
                    for piece in pieces:
                        piece.cancel()
        return buffer

    def close(self) -> None:
        """Nothing is held open."""

    def _fill(self, offset: int, into: np.ndarray) -> None:
        if self._cache is not None and self._cache.get(offset, into):
            return
        into[:] = np.frombuffer(self._fetch(offset, into.nbytes), dtype=np.uint8)
        if self._cache is not None:
            self._cache.put(offset, into)

    def _fetch(self, offset: int, length: int) -> bytes:
        if self._answer.ranged:
            return patiently(self._shown, lambda: self._transport.fetch(offset, length))
        if offset or length != self.size or length > _LARGEST_WHOLE_BYTES:
            raise InputError(
                f"{self._shown}: the server ignores range requests and would send all {self.size} bytes; "
                "download it first"
            )
        return patiently(self._shown, lambda: self._transport.fetch_whole(length))


class RemoteFolder:
    """The part of a URL before the last slash."""

    remote = True

    def __init__(self, url: str) -> None:
        """``url`` of the folder; a query, such as a token, goes along with the URL of every file.

        Raises:
            MissingPartError: what its scheme needs is not installed.
            InputError: it is no URL.
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise InputError(f"{shown(url)}: is no URL ({error})") from error
        self._parts = parts._replace(path=parts.path.rstrip("/"), fragment="")
        self._scheme = parts.scheme.lower()
        self._http = self._scheme in {"http", "https"}
        with needs("remote", f"{self.name}: a URL"):
            import fsspec

            if self._http:
                import aiohttp  # noqa: F401
        # Proxies are named by the environment. Listings must not be kept from an earlier reading.
        options = {"client_kwargs": {"trust_env": True}} if self._http else {}
        try:
            self._filesystem = fsspec.filesystem(self._scheme, skip_instance_cache=True, **options)
        except ImportError as error:
            raise lacking(self.name, error) from error
        self._files: dict[str, RemoteFile | str] = {}

    @property
    def name(self) -> str:
        """The URL, without user, password and query."""
        return shown(self._parts.geturl())

    def where(self, file: str) -> str:
        """The file's URL, without user, password and query."""
        return f"{self.name}/{file}"

    def has(self, file: str) -> bool:
        """Whether the source shows the file. Some answer 403 for what is not there."""
        return isinstance(self._find(file), RemoteFile)

    def open(self, file: str) -> RemoteFile:
        """Open one of its files."""
        found = self._find(file)
        if isinstance(found, str):
            raise InputError(f"{self.where(file)}: not there, or not yours to read ({found})")
        return found

    def _find(self, file: str) -> RemoteFile | str:
        if file not in self._files:
            shown, transport = self.where(file), self._transport(file)
            try:
                answer = patiently(shown, transport.probe, missing_is_final=False)
                self._files[file] = RemoteFile(self._url(file), shown, transport, answer)
            except Missing as error:
                self._files[file] = str(error)
        return self._files[file]

    def _url(self, file: str) -> str:
        return urlunsplit(self._parts._replace(path=f"{self._parts.path}/{quote(file)}"))

    def _transport(self, file: str) -> Transport:
        if self._http:
            return HttpTransport(self._filesystem, self._url(file), self.where(file))
        path = posixpath.join(self._parts.netloc + self._parts.path, file)
        return FilesystemTransport(self._filesystem, path, self.where(file), SCHEMES[self._scheme])


def split_url(url: str) -> tuple[str, str]:
    """A file's URL as that of its folder, and its name.

    Raises:
        InputError: it is no URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url}: is no URL ({error})") from error
    folder, _, file = parts.path.rpartition("/")
    return urlunsplit(parts._replace(path=folder)), unquote(file)


def patiently(shown: str, ask: Callable[[], _T], *, missing_is_final: bool = True) -> _T:
    """Ask until there is an answer, waiting longer each time, or as long as the source says.

    Raises:
        InputError: it never answers.
        Missing: it answers that there is no such file, and ``missing_is_final`` is not set.
    """
    tries = 0
    while True:
        try:
            return ask()
        except Missing as error:
            if missing_is_final:
                raise InputError(f"{shown}: cannot be read ({error})") from error
            raise
        except Transient as error:
            tries += 1
            if tries >= (_UNREACHABLE_TRIES if error.unreachable else _TRIES):
                raise InputError(
                    f"{shown}: gives up after {tries} tries ({error}); what was fetched is kept, try again later"
                ) from error
            # The spread keeps several readers from asking in step.
            wait = _FIRST_WAIT_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
            time.sleep(min(_LONGEST_WAIT_S, wait if error.wait_s is None else error.wait_s))
