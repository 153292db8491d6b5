"""One writer at a time for an output: a lock that ends with its process, however that ends, and says who holds it.

A lock is a small file that the kernel locks (flock) while its holder lives; what is written in it is for people. The
file of a killed process is there still, and nobody's. A folder's lock lies in it, a file's beside it; whoever holds a
folder keeps away those who would write a file right in it, and they him. Windows has no such locks: nothing is held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from gatenorm_export.artifacts import clear_left_overs, output_error
from gatenorm_export.errors import BusyError, OutputError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_FOLDER_LOCK, _PREFIX, _SUFFIX = ".gatenorm.lock", ".gatenorm.", ".lock"

_PATIENCE_SECONDS = 0.3
"""Before a lock counts as held: longer than another process looks at it, and than a holder takes to sign it."""

_PAUSE_SECONDS = 0.05

_TRIES = 100


def folder_lock(folder: Path) -> Path:
    """The lock file of whoever writes a folder as a whole."""
    return folder / _FOLDER_LOCK


def file_lock(path: Path) -> Path:
    """The lock file of whoever writes one file, or replaces one folder by another."""
    return path.parent / f"{_PREFIX}{path.name}{_SUFFIX}"


@contextlib.contextmanager
def sole_writer(locks: Iterable[Path], *, command: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold all ``locks`` while the block runs, as ``command``; wait up to ``wait_seconds`` for others to end.

    Folders that do not exist are made for it, and removed again where they are empty at the end.

    Raises:
        BusyError: another process holds one of them, or one that keeps this one away.
        OutputError: a lock file cannot be made.
    """
    wanted = sorted(set(locks)) if fcntl is not None else []
    deadline = time.monotonic() + max(wait_seconds, _PATIENCE_SECONDS)
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.ExitStack() as attempt:
                orphaned: list[Path] = []
                held_by_another = _first_busy(wanted, command, attempt, orphaned)
                if held_by_another is None:
                    stack.push(attempt.pop_all())
                    break
            if time.monotonic() >= deadline:
                raise BusyError(f"{_shown(held_by_another)}: {_holder(held_by_another)}; {_ADVICE}")
            # Two that want the same locks and gave them up for each other must not meet again and again.
            time.sleep(_PAUSE_SECONDS * random.uniform(0.5, 1.5))
        for lock in orphaned:
            _clear_after(lock)
        for lock in _of_the_killed(wanted):
            with contextlib.ExitStack() as attempt:
                if _taken(lock, attempt) is not None:
                    _clear_after(lock)
        yield


_ADVICE = "let it end, give --wait SECONDS, or choose another output"


def _first_busy(wanted: list[Path], command: str, attempt: contextlib.ExitStack, orphaned: list[Path]) -> Path | None:
    """Take what is wanted into ``attempt``; the first lock that another process holds, or None.

    Those that a process held as it died are put into ``orphaned``.
    """
    for lock in wanted:
        handle = _taken(lock, attempt)
        if handle is None:
            return lock
        if os.fstat(handle).st_size:
            orphaned.append(lock)
        _sign(handle, command)
    # After ours are taken: of two that keep each other away, at least one sees the other.
    return next((rival for lock in wanted for rival in _rivals(lock) if rival not in wanted and _held(rival)), None)


def _rivals(lock: Path) -> list[Path]:
    if lock.name != _FOLDER_LOCK:
        return [folder_lock(lock.parent)]
    return [path for path in lock.parent.glob(f"{_PREFIX}*{_SUFFIX}") if path.name != _FOLDER_LOCK]


def _of_the_killed(wanted: list[Path]) -> list[Path]:
    """Locks of single files beside what is wanted that somebody signed and nobody holds: he died as he wrote."""
    beside = (path for folder in {lock.parent for lock in wanted} for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    found = sorted(path for path in beside if path.name != _FOLDER_LOCK and path not in wanted)
    return [path for path in found if _signed(path) and not _held(path)]


def _signed(lock: Path) -> bool:
    try:
        return lock.stat(follow_symlinks=False).st_size > 0
    except OSError:
        return False


def _clear_after(lock: Path) -> None:
    """Remove what the last holder of a lock, which is ours now, left unfinished."""
    if lock.name == _FOLDER_LOCK:
        clear_left_overs(lock.parent)
        return
    path = _locked_file(lock)
    clear_left_overs(path.parent, path.name)
    record = path.with_name(f"{path.name}.json")
    # An engine's record is written under the engine's lock, unless somebody writes a file of that name for itself.
    if not _held(file_lock(record)):
        clear_left_overs(record.parent, record.name)


def _taken(lock: Path, attempt: contextlib.ExitStack) -> int | None:
    """The open lock file, ours until ``attempt`` is closed; None where another process holds it."""
    made = _missing_folders(lock.parent)
    while True:
        handle = _opened(lock)
        if not _locked(handle):
            os.close(handle)
            return None
        if _still_there(handle, lock):
            attempt.callback(_give_back, handle, lock, made)
            return handle
        os.close(handle)


def _opened(lock: Path) -> int:
    """The lock file, made where it is not there, with its folder.

    Raises:
        OutputError: it cannot be made, or is a link.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if any(path.exists() and not path.is_dir() for path in (lock.parent, *lock.parent.parents)):
                raise OutputError(
                    f"{lock.parent}: a file is in the way of the output folder; choose another output"
                ) from error
            # Others remove the folders that they made for nothing, and may do so at every step of this.
            if not isinstance(error, FileNotFoundError | FileExistsError) or not tries_left:
                raise output_error(lock.parent, error) from error
    raise AssertionError("the last try returns or raises")


def _sign(handle: int, command: str) -> None:
    os.ftruncate(handle, 0)
    with contextlib.suppress(OSError):
        # A full disk is for the verb to tell; the lock holds without a name too.
        os.pwrite(handle, json.dumps(dataclasses.asdict(_Holder.of_this(command))).encode(), 0)


def _missing_folders(folder: Path) -> list[Path]:
    """The folders on the way that do not exist, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _locked(handle: int, *, shared: bool = False) -> bool:
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OutputError(f"this file system keeps no locks ({error.strerror}); choose an output on another") from error
    return True


def _still_there(handle: int, lock: Path) -> bool:
    """Whether the file is the one under that name: its last holder may have removed it since it was opened."""
    try:
        return os.path.samestat(os.fstat(handle), lock.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _give_back(handle: int, lock: Path, made: list[Path]) -> None:
    # While it is locked, so that nobody can hold a file that is about to lose its name.
    if _still_there(handle, lock):
        lock.unlink(missing_ok=True)
    os.close(handle)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _held(lock: Path) -> bool:
    """Whether a process holds the lock; only looked at, and left where it is."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locked(handle, shared=True)
    finally:
        os.close(handle)


@dataclasses.dataclass(frozen=True)
class _Holder:
    """What a lock file says of who holds it."""

    pid: int
    host: str
    command: str
    since: str

    @classmethod
    def of_this(cls, command: str) -> _Holder:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(os.getpid(), platform.node(), command, now)


def _holder(lock: Path) -> str:
    """Who holds a lock, in words."""
    try:
        found = _Holder(**json.loads(lock.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return "another process is writing there"
    return f"process {found.pid} on {found.host} has been writing there since {found.since} ({found.command})"


def _shown(lock: Path) -> str:
    """The output that a lock is of."""
    if lock.name == _FOLDER_LOCK:
        return str(lock.parent)
    return str(_locked_file(lock))


def _locked_file(lock: Path) -> Path:
    return lock.parent / lock.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
