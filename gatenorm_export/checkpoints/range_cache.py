"""What was fetched of remote files, kept on disk: an interrupted scoring goes on where it stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import platformdirs
import xxhash

_DIGEST_BYTES = 16


def cache_folder() -> Path:
    """Where remote ranges are kept: in the user's cache, or below ``GATENORM_CACHE``."""
    return Path(os.environ.get("GATENORM_CACHE") or platformdirs.user_cache_dir("gatenorm")) / "ranges"


class RangeCache:
    """The kept ranges of one state of one remote file.

    ``identity`` is what the source says of the file's state: its ETag or date, and its size. Ranges of another state
    are deleted. Each range is a file that ends in a digest of itself and gets its name when it is whole, so what a
    crash or a full disk leaves behind is never believed. A cache that cannot be written keeps nothing: scoring only
    takes longer when it is done again.
    """

    def __init__(self, url: str, identity: str) -> None:
        place = cache_folder() / xxhash.xxh3_128_hexdigest(url.encode())
        self._folder: Path | None = place / xxhash.xxh3_128_hexdigest(identity.encode())
        with contextlib.suppress(OSError):
            for other in place.iterdir():
                if other != self._folder:
                    shutil.rmtree(other, ignore_errors=True)

    def get(self, offset: int, into: np.ndarray) -> bool:
        """Fill ``into`` with the bytes from ``offset`` on, if exactly that range was kept whole."""
        if self._folder is None:
            return False
        path = self._folder / f"{offset}-{into.nbytes}"
        try:
            with path.open("rb", buffering=0) as file:
                done = 0
                while done < into.nbytes:
                    count = file.readinto(into.data[done:])
                    if not count:
                        return False
                    done += count
                return file.read() == xxhash.xxh3_128_digest(into.data)
        except OSError:
            return False

    def put(self, offset: int, data: np.ndarray) -> None:
        """Keep a range."""
        if self._folder is None:
            return
        temporary = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(suffix=".part", dir=self._folder)
            with os.fdopen(handle, "wb", buffering=0) as file:
                for part in (data.data, xxhash.xxh3_128_digest(data.data)):
                    view = memoryview(part)
                    while view:
                        view = view[file.write(view) :]
            Path(temporary).replace(self._folder / f"{offset}-{data.nbytes}")
        except OSError:
            self._folder = None
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
