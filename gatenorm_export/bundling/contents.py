"""The files of a bundle under the names that they get there, and how they are written."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graph_storage import check_room
from gatenorm_export.graphs import MANIFEST_NAME
from gatenorm_export.progress import Progress
from gatenorm_export.records import BundleFile
from gatenorm_export.records.bundle import Role

_CHUNK = 4 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Content:
    """One file: bytes, or a file to copy; ``not_reproducible`` says why the same inputs may give other bytes."""

    role: Role
    source: Path | bytes
    not_reproducible: str = ""

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, a few megabytes at a time."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        with self.source.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece


class Contents:
    """Files by name; no two may have one name, on any system."""

    def __init__(self) -> None:
        self._files: dict[str, Content] = {}
        self._taken = {MANIFEST_NAME.casefold()}

    def add(self, name: str, role: Role, source: Path | bytes, not_reproducible: str = "") -> None:
        """Add a file.

        Raises:
            RefusedError: the name is taken.
        """
        if name.casefold() in self._taken:
            raise RefusedError(f"{source if isinstance(source, Path) else name}: the bundle has another file {name}")
        self._taken.add(name.casefold())
        self._files[name] = Content(role, source, not_reproducible)

    def add_all(self, role: Role, files: Mapping[str, Path]) -> None:
        """Add files of one role."""
        for name, path in files.items():
            self.add(name, role, path)

    def write(self, folder: Path, progress: Progress) -> tuple[BundleFile, ...]:
        """Write every file, digesting what is written; return the entries of a manifest, sorted by name.

        Raises:
            InputError: a file cannot be read, or its name is none that a bundle may have.
            OutputError: the disk has no room.
        """
        needed = sum(content.size for content in self._files.values())
        check_room(folder, needed, advice="make room, or choose another disk")
        with progress.task("write the bundle", total=len(self._files)) as bar:
            entries = []
            for name, content in sorted(self._files.items()):
                entries.append(_write(folder, name, content))
                bar.advance()
        return tuple(entries)


def _write(folder: Path, name: str, content: Content) -> BundleFile:
    try:
        # The name is checked by the entry, before a path is made of it.
        BundleFile(name=name, bytes=0, sha256="0" * 64, role=content.role)
    except ValueError as error:
        raise InputError(f"{content.source!r}: cannot be bundled under the name {name!r}; rename it") from error
    target, digest, size = folder / name, hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for piece in content.pieces():
            digest.update(piece)
            size += file.write(piece)
    return BundleFile(
        name=name,
        bytes=size,
        sha256=digest.hexdigest(),
        role=content.role,
        not_reproducible=content.not_reproducible,
    )
