"""A folder of artifacts, each under the sha256 of its bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import atomic_file, sha256_of
from gatenorm_export.errors import InputError, OutputError
from gatenorm_export.records import FileDigest

CHUNK_BYTES = 64 * 2**20
"""Files travel in pieces of this size: a message of gigabytes is refused on the way."""


class ArtifactStore:
    """Keeps what tasks made in ``folder``, which is made with the first artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, artifact: FileDigest) -> Path:
        """Where it lies, there or not."""
        return self.folder / artifact.sha256

    def holds(self, artifact: FileDigest) -> bool:
        """Whether it is there with the right bytes."""
        path = self.place(artifact)
        try:
            return path.stat().st_size == artifact.bytes and sha256_of(path) == artifact.sha256
        except (OSError, InputError):
            return False

    def get(self, artifact: FileDigest) -> Path:
        """Its path, the bytes checked.

        Raises:
            InputError: it is gone or damaged.
        """
        if not self.holds(artifact):
            raise InputError(f"{self.place(artifact)}: {artifact.name} is gone or damaged; start again to make it anew")
        return self.place(artifact)

    def take(self, path: Path, artifact: FileDigest) -> None:
        """Move a file of this machine in.

        Raises:
            OutputError: the store cannot be written.
        """
        if self.holds(artifact):
            return
        with atomic_file(self.place(artifact)) as temporary:
            shutil.move(path, temporary)

    def receive(self, pieces: Iterable[Any], artifact: FileDigest) -> None:
        """Write the bytes that came from another machine, and hold them against the digest taken there.

        Raises:
            OutputError: the store cannot be written, or the bytes are not those that were sent.
        """
        if not self.holds(artifact):
            write_checked(self.place(artifact), pieces, artifact)


def write_checked(path: Path, pieces: Iterable[Any], artifact: FileDigest) -> None:
    """Write a file from pieces; it appears only if it has the digest.

    Raises:
        OutputError: it cannot be written, or has another digest.
    """
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(memoryview(piece))
        found = sha256_of(temporary)
        if found != artifact.sha256:
            raise OutputError(
                f"{artifact.name}: arrived with the sha256 {found[:12]} instead of {artifact.sha256[:12]}; start again"
            )


def place_artifact(source: Path, target: Path) -> None:
    """Put an artifact under a name of the user's, atomically; on one disk its bytes are there once.

    Raises:
        OutputError: ``target`` cannot be written.
    """
    with atomic_file(target) as temporary:
        temporary.unlink()
        try:
            # Nothing writes into an artifact: it is replaced whole, and one that was changed all the same is noticed.
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
