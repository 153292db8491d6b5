"""Engines kept for the next build of the same: by graph, flavour, version, GPU, profiles and precision."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from gatenorm_export.artifacts import atomic_file, sha256_of
from gatenorm_export.building.opening import record_file
from gatenorm_export.building.resources import free_disk
from gatenorm_export.errors import InputError, OutputError
from gatenorm_export.progress import Progress
from gatenorm_export.records import EngineArtifact

LIMIT_BYTES = 20_000_000_000
"""What the cache may hold: two dozen engines of a model of 1.5 billion parameters in half precision would pass it.
Those not used for longest go first."""


@dataclasses.dataclass(frozen=True)
class BuildCache:
    """A folder of engines under the digest of everything that decides them, each with its record."""

    folder: Path
    limit_bytes: int = LIMIT_BYTES

    def take(self, key: str, engine: Path, progress: Progress) -> EngineArtifact | None:
        """Put a copy of the kept engine at ``engine``; its record, or None where there is none or it is damaged.

        Raises:
            OutputError: ``engine`` cannot be written.
        """
        kept, kept_record = self._places(key)
        try:
            record = EngineArtifact.load(kept_record)
        except InputError:
            return None
        with contextlib.suppress(_Damaged), atomic_file(engine) as temporary:
            try:
                shutil.copyfile(kept, temporary)
            except FileNotFoundError as error:
                raise _Damaged from error
            if sha256_of(temporary) != record.sha256:
                raise _Damaged
            # The age of a file says when it was last of use.
            with contextlib.suppress(OSError):
                os.utime(kept_record)
            # An engine without a record is refused for what it is; one under another's record seems damaged.
            record_file(engine).unlink(missing_ok=True)
            return record
        progress.say(f"{kept}: the kept engine is damaged; it is removed and built again")
        self._remove(key)
        return None

    def keep(self, key: str, engine: Path, record: EngineArtifact, progress: Progress) -> None:
        """Keep a copy of ``engine``. A cache that has no room, or cannot be written, is said and does no harm."""
        kept, kept_record = self._places(key)
        if record.bytes > self.limit_bytes:
            progress.say(f"the build cache holds {self.limit_bytes / 1e9:g} GB, this engine is larger; it is not kept")
            return
        try:
            self._make_room(record.bytes)
            if free_disk(self.folder) < record.bytes:
                progress.say(f"{self.folder}: no room to keep the engine for the next build of the same")
                return
            with atomic_file(kept) as temporary:
                shutil.copyfile(engine, temporary)
            record.save(kept_record)
        except (OSError, OutputError) as error:
            progress.say(f"{self.folder}: the engine is not kept for the next build of the same ({error})")

    def timing_file(self, name: str) -> Path:
        """Where the timings of kernels are kept, which only data-centre TensorRT takes; its folder is made.

        Raises:
            OutputError: it cannot be made.
        """
        path = self.folder / "timings" / f"{name}.cache"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be made ({error.strerror}); build with --no-cache") from error
        return path

    def _places(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.engine", self.folder / f"{key}.engine.json"

    def _remove(self, key: str) -> None:
        for path in reversed(self._places(key)):
            path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the engines unused for longest until one more of ``size`` bytes fits the limit."""
        if not self.folder.is_dir():
            return
        held = sorted(self.folder.glob("*.engine.json"), key=lambda path: path.stat().st_mtime)
        sizes = {path: path.with_suffix("").stat().st_size for path in held if path.with_suffix("").is_file()}
        total = sum(sizes.values())
        for path in held:
            if total + size <= self.limit_bytes:
                return
            self._remove(path.name.removesuffix(".engine.json"))
            total -= sizes.get(path, 0)


class _Damaged(Exception):
    """A kept engine is not what its record says."""


def default_cache() -> BuildCache:
    """The cache in the user's own folder; ``GATENORM_CACHE`` overrides its place."""
    return BuildCache(Path(os.environ.get("GATENORM_CACHE") or platformdirs.user_cache_dir("gatenorm")) / "engines")


def cache_key(decides: Mapping[str, Any]) -> str:
    """The digest of everything that decides an engine."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
