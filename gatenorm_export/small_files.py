"""Text and JSON that nobody vouches for, and places in a folder that must not lead out of it."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gatenorm_export.errors import InputError

LARGEST_BYTES = 200_000_000
"""A record is some kilobytes, the index of the largest checkpoints some megabytes."""

_HALF_PAIR = re.compile(r"\\u[dD][89abAB]")


def open_plain(path: Path) -> int:
    """Open a file for reading and return its descriptor. Anything but a plain file is refused: a pipe that nobody
    writes to would be waited for, a device never ends.

    Raises:
        InputError: it is not there, no plain file, or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        # A name with a zero byte in it is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path}: cannot be read (it is no plain file); check the path")
    return handle


def read_small(path: Path, *, largest: int = LARGEST_BYTES) -> bytes:
    """The whole of a file that has no reason to be large.

    Raises:
        InputError: as :func:`open_plain`, or it has more than ``largest`` bytes.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        _check_size(path, os.fstat(file.fileno()).st_size, largest)
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def check_small(path: Path) -> None:
    """Make sure of what :func:`read_small` does, without reading the file.

    Raises:
        InputError: as :func:`read_small`.
    """
    handle = open_plain(path)
    try:
        _check_size(path, os.fstat(handle).st_size, LARGEST_BYTES)
    finally:
        os.close(handle)


def _check_size(path: Path, size: int, largest: int) -> None:
    if size > largest:
        raise InputError(f"{path}: has {size:,} bytes, where a file of its kind has less than {largest:,}")


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        InputError: as :func:`read_small`, or it holds something else.
    """
    value = parse_json(read_small(path), lambda reason: InputError(f"{path}: {reason}"))
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def parse_json(text: bytes, error: Callable[[str], InputError], *, unique: bool = False) -> Any:
    """Parse JSON that nobody vouches for; ``unique`` refuses objects that have a name twice.

    Raises:
        InputError: what ``error`` makes of the reason.
    """
    try:
        decoded = text.decode("utf-8")
        value = json.loads(decoded, object_pairs_hook=_unique if unique else None)
        if _HALF_PAIR.search(decoded):
            # Half of a surrogate pair is no text: it could neither be written to a file nor shown.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (ValueError, RecursionError) as reason:
        # A decoding error is a ValueError too; brackets nested without end are a RecursionError.
        raise error(f"not readable JSON ({str(reason).splitlines()[0]})") from reason


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 10_000 else "a name"
        raise ValueError(f"{twice} stands in it twice")
    return found


def inside(folder: Path, name: str) -> Path:
    """The place of ``name`` below ``folder``, which must not lead out of it: by itself, or as a link.

    A hub's cache is let through: its snapshots are folders of links into the store of blobs beside them.

    Raises:
        InputError: it leads out.
    """
    path = folder / name
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        # A link to itself, or a name with a zero byte in it.
        raise InputError(f"{path}: is no place in a folder ({error})") from error
    store = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not real.is_relative_to(root) and not real.is_relative_to(store):
        how = f"is a link to {real}, which is" if path.is_symlink() else "lies"
        raise InputError(f"{path}: {how} outside its folder; refused, put the file itself there")
    return path


def present_inside(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The places of those ``names`` that are files of ``folder``, by name.

    Raises:
        InputError: one leads out of the folder, as for :func:`inside`.
    """
    return {name: inside(folder, name) for name in names if (folder / name).is_file()}
