"""Files as artifacts: digests, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.errors import InputError, OutputError

# What tempfile makes of the prefixes and suffixes below, and of those of builds.
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}\.part|\.gatenorm\.[a-z0-9_]{8}")


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def sha256_of_text(text: str) -> str:
    """Return the hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def output_error(path: Path, error: OSError) -> OutputError:
    """What to tell where ``path`` could not be written."""
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); nothing was left under that name, "
        "choose another output or make room"
    )


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block ends without an exception.

    The temporary file lives in the same folder, because a rename is atomic only within one file system. It is synced
    before the rename, so that a full disk shows up here and not as an empty file under the final name.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder on the same disk; its files move into ``folder`` when the block ends without an exception.

    Each file appears whole, ``manifest.json`` last: whoever sees the manifest sees everything that it describes. Other
    files in ``folder`` stay, because the user may have named a folder that holds more than our output.

    Raises:
        OutputError: the folder is not writable, the disk is full, or a file is in the way of the folder.
    """
    staging: Path | None = None
    ours = not folder.exists()
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: a file is in the way of the output folder; choose another output")
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".gatenorm.", suffix=".part", dir=folder))
        yield staging
        for path in sorted(staging.iterdir(), key=lambda path: (path.name.endswith("manifest.json"), path.name)):
            path.replace(folder / path.name)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if ours:
            # A folder that we made for nothing goes again; one with files in it cannot be removed like this.
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place, whole, when the block ends without an exception.

    Where a folder is there already, both are exchanged in one step, so that nobody sees half of each; the old one is
    removed afterwards. Whoever calls this has made sure that it may go.

    Raises:
        OutputError: the folder is not writable, the disk is full, or it is a link or no folder.
    """
    staging: Path | None = None
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OutputError(f"{folder}: is a link or a file in the way of the output folder; choose another output")
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        yield staging
        staging.chmod(0o777 & ~_umask())
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if not folder.exists() or not _exchanged(staging, folder):
            _moved_aside(staging, folder)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two paths in one step, where kernel and file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def _moved_aside(staging: Path, folder: Path) -> None:
    """Put ``staging`` in the place of ``folder`` in two steps; where the second fails, the old folder comes back."""
    aside = staging.with_suffix(".old")
    existed = folder.exists()
    if existed:
        folder.rename(aside)
    try:
        staging.rename(folder)
    except OSError:
        if existed:
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def clear_left_overs(folder: Path, name: str | None = None) -> None:
    """Remove what a process left in ``folder`` that was killed while it wrote; nobody may write there now.

    With ``name`` only what was to become the file or folder of that name, which nobody else may write now.
    """
    unfinished = _UNFINISHED if name is None else re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.part")
    for path in folder.glob(".*"):
        if unfinished.fullmatch(path.name) is None:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8.

    Raises:
        OutputError: see :func:`atomic_file`.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    """The process's umask, read without a race where the kernel shows it (mkstemp makes files private: 0600)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        return 0o022
    return 0o022
