"""Do one task in this process: the same on every executor."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import InputError, OutputError
from gatenorm_export.executing.tasks import Call, InputFile, Quieting, Task, function_of, known_sha256
from gatenorm_export.progress import Progress
from gatenorm_export.records import FileDigest

_PREFIX = ".gatenorm-task-"
_NEW_SECONDS = 60


@dataclass(frozen=True)
class Done:
    """What a function returned, and the files that it left in ``folder``."""

    value: Any
    folder: Path | None
    artifacts: tuple[FileDigest, ...]
    seconds: float


class Scratch:
    """A folder in ``parent`` that is made when it is first wanted, and locked while the process lives if ``held``.

    ``label`` is a part of its name.
    """

    def __init__(self, parent: Path | None, *, label: str = "", held: bool = False) -> None:
        self._parent, self._label, self._held = parent, label, held
        self._handle: int | None = None
        self.folder: Path | None = None

    def __call__(self) -> Path:
        """The folder.

        Raises:
            OutputError: it cannot be made.
        """
        if self.folder is None:
            try:
                if self._parent is not None:
                    self._parent.mkdir(parents=True, exist_ok=True)
                self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{self._label}-", dir=self._parent))
                if self._held:
                    self._handle = _locked(self.folder)
            except OSError as error:
                raise OutputError(
                    f"{self._parent or tempfile.gettempdir()}: cannot be written ({error.strerror}); make room"
                ) from error
        return self.folder

    def remove(self) -> None:
        """Remove it, and ``parent`` too where nothing else is in it."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._parent is not None:
                with contextlib.suppress(OSError):
                    self._parent.rmdir()
        if self._handle is not None:
            os.close(self._handle)


def _locked(folder: Path) -> int:
    """An open handle that keeps a lock on ``folder``.

    Raises:
        OSError: another process has one.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def clear_left_overs(parent: Path) -> None:
    """Remove the held scratch folders in ``parent`` of processes that died in the middle of a task."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # What is locked is at work, and what belongs to another user cannot be opened.
        with contextlib.suppress(OSError):
            # One that was made just now is not locked yet.
            if time.time() - folder.stat().st_mtime > _NEW_SECONDS:
                handle = _locked(folder)
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def clear_labelled(parent: Path, label: str) -> None:
    """Remove the scratch folders in ``parent`` with a label, whose processes are all dead."""
    for folder in parent.glob(f"{_PREFIX}{label}-*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(parent: Path | None, *, label: str = "", held: bool = False) -> Iterator[Scratch]:
    """A :class:`Scratch` that is gone after the block."""
    scratch = Scratch(parent, label=label, held=held)
    try:
        yield scratch
    finally:
        scratch.remove()


def do(
    task: Task,
    paths: Mapping[str, Path],
    scratch: Scratch,
    progress: Progress,
    *,
    sharing: Quieting = contextlib.nullcontext,
    alone: Quieting = contextlib.nullcontext,
) -> Done:
    """Call the task's function with its inputs at ``paths``.

    Raises:
        GateNormError: whatever the function raises; it is not to be found; or its value is not JSON.
    """
    function, started = function_of(task.function), time.monotonic()
    value = function(Call(task.arguments, paths, scratch, progress, sharing, alone))
    seconds = time.monotonic() - started
    # Here too, so that a value which would not survive the way from another machine does not pass in this process.
    value = json.loads(json.dumps(value, allow_nan=False))
    folder = scratch.folder
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder is not None else []
    artifacts = tuple(
        FileDigest(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in files
        if folder is not None
    )
    return Done(value, folder, artifacts, seconds)


def is_there(file: InputFile) -> bool:
    """Whether the file lies at its path here, with its digest."""
    try:
        return file.path.stat().st_size == file.bytes and known_sha256(file.path) == file.sha256
    except (OSError, InputError):
        return False


def check_inputs(task: Task) -> dict[str, Path]:
    """The inputs by name, where they lie.

    Raises:
        InputError: one is gone, or has changed since its digest was taken.
    """
    for file in task.inputs:
        if not is_there(file):
            raise InputError(f"{file.path}: is gone or was changed while {task.name} waited; start again")
    return {file.name: file.path for file in task.inputs}
