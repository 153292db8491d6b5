"""How bytes of a remote file are asked for: over HTTP with every answer checked, or by what fsspec offers elsewhere.

fsspec's own HTTP reader returns a whole file where a server ignores the range, hides the status of an answer behind
FileNotFoundError and drops Retry-After. So HTTP requests are made here, in fsspec's session and on its loop.
"""

from __future__ import annotations

import dataclasses
import email.utils
import time
from typing import Any, Protocol

from gatenorm_export.errors import InputError, MissingPartError

FIRST_BYTES = 8
"""How much the first question asks for: safetensors keeps the length of its header there."""

_CONNECT_TIMEOUT_S, _SILENCE_TIMEOUT_S = 30.0, 60.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
# Fields of fsspec's info, by whatever name a file system gives them, that change when the file does.
_STATE_FIELDS = ("ETag", "etag", "blob_id", "oid", "generation", "md5Hash", "LastModified", "mtime", "updated")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the first question told: size, state (None where the source names none), whether ranges are served."""

    size: int
    state: str | None
    ranged: bool
    first: bytes


class Missing(Exception):
    """The file is not there, or not shown to us; the text says what the source answered."""


class Transient(Exception):
    """The question may be asked again, after ``wait_s`` seconds where the source said so."""

    def __init__(self, reason: str, wait_s: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.unreachable = unreachable


class Transport(Protocol):
    """One remote file."""

    def probe(self) -> Answer:
        """Ask for the first bytes."""

    def fetch(self, offset: int, length: int) -> bytes:
        """Ask for a range."""

    def fetch_whole(self, size: int) -> bytes:
        """Ask for everything, of a source that serves no ranges."""


class HttpTransport:
    """A file behind http or https."""

    def __init__(self, filesystem: Any, url: str, shown: str) -> None:
        """``shown`` is the URL without what is secret in it, for messages."""
        self._filesystem, self._url, self._shown = filesystem, url, shown
        self._state: str | None = None

    def probe(self) -> Answer:
        """Ask for the first bytes; their answer tells the size, the state, and whether ranges are served."""
        status, headers, body = self._get(0, FIRST_BYTES, probing=True)
        tag, date = headers.get("ETag"), headers.get("Last-Modified")
        self._state = tag or date
        if status == 416:
            return Answer(0, self._state, True, b"")
        total = _content_range(headers)[1] if status == 206 else _number(headers.get("Content-Length"))
        if total is None:
            raise InputError(f"{self._shown}: the server does not tell its size; download it first")
        return Answer(total, self._state, status == 206, body)

    def fetch(self, offset: int, length: int) -> bytes:
        """Ask for a range, and make sure that the answer is that range of the same file."""
        status, headers, body = self._get(offset, length)
        if status != 206:
            raise InputError(
                f"{self._shown}: the server answers a range request with {status}, the whole file; download it first"
            )
        begin, _ = _content_range(headers)
        if begin not in (offset, None):
            raise InputError(f"{self._shown}: the server was asked for byte {offset} and sends byte {begin}; refused")
        if (headers.get("ETag") or headers.get("Last-Modified")) != self._state:
            raise InputError(f"{self._shown}: changed while it was read; score it again")
        if len(body) != length:
            raise Transient(f"{len(body)} of {length} bytes came")
        return body

    def fetch_whole(self, size: int) -> bytes:
        """Ask for the whole file."""
        _, _, body = self._get(0, size, ranged=False)
        if len(body) != size:
            raise Transient(f"{len(body)} of {size} bytes came")
        return body

    def _get(
        self, offset: int, length: int, *, ranged: bool = True, probing: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        from fsspec.asyn import sync

        # A compressed answer would be a range of other bytes.
        headers = {"Accept-Encoding": "identity"}
        if ranged:
            headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        answer: tuple[int, dict[str, str], bytes] = sync(
            self._filesystem.loop, self._ask, headers, length, ranged, probing
        )
        return answer

    async def _ask(self, headers: dict[str, str], length: int, ranged: bool, probing: bool) -> tuple[int, Any, bytes]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S)
        try:
            session = await self._filesystem.set_session()
            url = self._filesystem.encode_url(self._url)
            async with session.get(url, headers=headers, timeout=timeout) as answer:
                self._check(answer.status, answer.headers, probing)
                # The body of an answer that is not what was asked for may be as long as the file: it is not read.
                unasked = answer.status == 416 or (ranged and answer.status != 206)
                body = b"" if unasked else await _body(answer.content, length)
                return answer.status, answer.headers, body
        except TimeoutError as error:
            raise Transient(f"no answer for {_SILENCE_TIMEOUT_S:.0f} s") from error
        except aiohttp.ClientConnectorError as error:
            raise Transient(str(error), unreachable=True) from error
        except ValueError as error:
            # aiohttp's InvalidURL is one, and so is what a port beyond 65535 gives.
            raise InputError(f"{self._shown}: is no URL") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(_line(error)) from error

    def _check(self, status: int, headers: Any, probing: bool) -> None:
        if status in {200, 206} or (status == 416 and probing):
            return
        if status in _TRANSIENT:
            raise Transient(f"the server answers {status}", _retry_after(headers.get("Retry-After")))
        raise Missing(f"the server answers {status}")


class FilesystemTransport:
    """A file behind s3, gs, hf or another file system of fsspec's."""

    def __init__(self, filesystem: Any, path: str, shown: str, options: dict[str, Any]) -> None:
        """``options`` are for the file system's ``cat_file``."""
        self._filesystem, self._path, self._shown, self._options = filesystem, path, shown, options

    def probe(self) -> Answer:
        """Ask for size and state."""
        info = self._try(self._filesystem.info, self._path)
        size = info.get("size")
        if info.get("type") == "directory":
            raise Missing("it is a folder")
        if type(size) is not int or size < 0:
            raise InputError(f"{self._shown}: its size is not told; download it first")
        fields = [f"{name}={info[name]}" for name in _STATE_FIELDS if info.get(name)]
        return Answer(size, " ".join(fields) or None, True, b"")

    def fetch(self, offset: int, length: int) -> bytes:
        """Ask for a range."""
        data = self._try(self._filesystem.cat_file, self._path, start=offset, end=offset + length, **self._options)
        if len(data) > length:
            raise InputError(f"{self._shown}: {len(data)} bytes came where {length} were asked for; download it first")
        if len(data) < length:
            raise Transient(f"{len(data)} of {length} bytes came")
        return bytes(data)

    def fetch_whole(self, size: int) -> bytes:
        """Ask for everything."""
        return self.fetch(0, size)

    def _try(self, call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except ImportError as error:
            raise lacking(self._shown, error) from error
        except Exception as error:
            # Each file system has a client of its own, with errors of its own; what tells them apart is the status.
            status = _status_of(error)
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                raise Missing(_line(error)) from error
            if status in _TRANSIENT or (status is None and isinstance(error, OSError | TimeoutError)):
                raise Transient(_line(error)) from error
            raise Missing(_line(error)) from error


def lacking(shown: str, error: ImportError) -> MissingPartError:
    """The error that names the package behind a URL's scheme, which fsspec itself does not bring."""
    scheme = shown.partition("://")[0]
    package = _PACKAGES.get(scheme, f'"fsspec[{scheme}]"')
    return MissingPartError(
        f"{shown}: {scheme}:// needs more than is installed: pip install {package} ({_line(error)})"
    )


async def _body(content: Any, length: int) -> bytes:
    """At most one byte more than was asked for: enough to notice that the answer is too long."""
    parts, left = [], length + 1
    while left and (part := await content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _content_range(headers: Any) -> tuple[int | None, int | None]:
    """First byte and total size of ``bytes 0-7/1234``."""
    span, _, total = headers.get("Content-Range", "").removeprefix("bytes").strip().partition("/")
    return _number(span.partition("-")[0]), _number(total)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait: the header holds them, or a date."""
    if text is None:
        return None
    seconds = _number(text)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of any client: each keeps it elsewhere."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    candidates = (getattr(error, "status", None), getattr(error, "code", None), response)
    for found in (*candidates, getattr(response, "status_code", None)):
        if type(found) is int and 100 <= found < 600:
            return found
    return None if error.__cause__ is None else _status_of(error.__cause__)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
