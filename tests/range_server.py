"""A folder behind HTTP with ranges, on this machine, that can be made to misbehave; it counts what it serves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_FAILURES_IN_ALL = 4
"""Of one request, however often it is made again."""


@dataclasses.dataclass
class Behaviour:
    """What the server does to a request, and what it has done."""

    seed: int | None = None
    """With a seed, about a third of the requests fail: 429, 500, a dropped connection, a short body."""
    ranged: bool = True
    always: int | None = None
    """The status of every answer."""
    tagged: bool = True
    stop_after: int | None = None
    """From this many bytes on, every request fails with 503."""
    retry_after: str = "0"
    served: int = 0
    requests: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    ranges: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Served:
    """The running server."""

    url: str
    behaviour: Behaviour


@contextlib.contextmanager
def serving(folder: Path, **options: object) -> Iterator[Served]:
    """Serve ``folder`` until the block ends; ``options`` are fields of :class:`Behaviour`."""
    behaviour = Behaviour(**options)
    chance, lock = random.Random(behaviour.seed), threading.Lock()
    unlucky: Counter[tuple[str, str]] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                behaviour.requests[self.path] += 1
                draw = chance.random() if behaviour.seed is not None else 1.0
                # Not even a bad server fails one request more often than anyone tries.
                asked = self.path, self.headers.get("Range", "")
                if draw < 0.35:
                    unlucky[asked] += 1
                    if unlucky[asked] > _FAILURES_IN_ALL:
                        draw = 1.0
            path = folder / self.path.partition("?")[0].lstrip("/")
            if behaviour.always is not None:
                return self.plain(behaviour.always)
            if behaviour.stop_after is not None and behaviour.served >= behaviour.stop_after:
                return self.plain(503)
            if draw < 0.1:
                return self.plain(429)
            if draw < 0.2:
                return self.plain(500)
            if not path.is_file():
                return self.plain(404)
            return self.send(path, cut=draw < 0.35)

        def send(self, path: Path, *, cut: bool) -> None:
            size = path.stat().st_size
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            begin, end = 0, size
            if span and behaviour.ranged:
                begin, end = int(span[1]), min(int(span[2]) + 1, size)
                if begin >= size:
                    return self.plain(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            else:
                self.send_response(200)
            if behaviour.tagged:
                self.send_header("ETag", '"' + hashlib.sha256(path.read_bytes()).hexdigest() + '"')
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            with path.open("rb") as file:
                file.seek(begin)
                body = file.read(end - begin)
            if cut:
                body = body[: len(body) // 2]
                self.close_connection = True
                behaviour.failures["cut"] += 1
            with lock:
                behaviour.ranges.append((path.name, begin, end))
                behaviour.served += len(body)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)
            return None

        def plain(self, status: int) -> None:
            behaviour.failures[str(status)] += 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if status in {429, 503}:
                self.send_header("Retry-After", behaviour.retry_after)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_address[1]}", behaviour)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
