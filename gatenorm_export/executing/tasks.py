"""A piece of work that any machine can do: a function by name, JSON arguments, files by digest; and its outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from gatenorm_export.artifacts import sha256_of, sha256_of_text
from gatenorm_export.errors import GateNormError, InputError
from gatenorm_export.progress import Progress
from gatenorm_export.records import FileDigest, tool_versions
from gatenorm_export.records.task import Machine


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file that a task reads. ``name`` is its place beside the task's other inputs, such as ``model.onnx.data``."""

    name: str
    path: Path
    sha256: str
    bytes: int


def input_file(path: Path, name: str | None = None) -> InputFile:
    """``path`` as an input with its digest.

    Raises:
        InputError: it cannot be read, or ``name`` is no relative path that stays where it is.
    """
    place = PurePosixPath(name if name is not None else path.name)
    if place.is_absolute() or not place.parts or ".." in place.parts:
        raise InputError(f"{path}: cannot be handed to a task as {place}; its name must be relative, without ..")
    sha256 = known_sha256(path)
    return InputFile(str(place), path, sha256, path.stat().st_size)


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a task occupies. ``accelerator`` is a GPU type as Ray writes it, such as ``H100``.

    The executor in this process has what the machine has and takes no account of it.
    """

    cpus: float = 1
    gpus: float = 0
    accelerator: str | None = None
    memory_bytes: int | None = None
    custom: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """A call of ``function`` (``module:name``, taking a :class:`Call`); ``name`` is what messages call it.

    The module must be importable where the task runs. ``arguments`` are JSON types.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    inputs: tuple[InputFile, ...] = ()
    resources: Resources | None = None
    """None is the executor's own."""
    machines: tuple[str, ...] = ()
    """The kinds of machines that it may run on, where the result depends on them."""

    def on_machines(self, executor: Executor) -> Task:
        """The same, with a result that depends on the machines that ``executor`` may have it done on.

        Raises:
            RefusedError: no machine has what it needs.
        """
        kinds = sorted({machine.kind for machine in executor.machines(self.resources)})
        return dataclasses.replace(self, machines=tuple(kinds))

    @functools.cached_property
    def key(self) -> str:
        """Digest of what decides the result: function, arguments, the inputs' names and bytes, tools, machines."""
        decides = {
            "function": self.function,
            "arguments": self.arguments,
            "inputs": sorted((file.name, file.sha256) for file in self.inputs),
            "versions": tool_versions(),
            "machines": self.machines,
        }
        return sha256_of_text(json.dumps(decides, sort_keys=True))


Quieting = Callable[[], contextlib.AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True)
class Call:
    """What a task's function is given. It returns JSON types; every file that it leaves in ``out`` is an artifact.

    It works inside ``sharing()`` and times inside ``alone()``: on a machine where several tasks run, nothing else that
    is shared runs then. Neither may be entered within the other.
    """

    arguments: Mapping[str, Any]
    inputs: Mapping[str, Path]
    scratch: Callable[[], Path]
    progress: Progress
    sharing: Quieting = contextlib.nullcontext
    alone: Quieting = contextlib.nullcontext

    @property
    def out(self) -> Path:
        """The task's own folder, made when it is first asked for."""
        return self.scratch()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a task ended: with a value and artifacts, or with the error that its function raised.

    ``lost`` says that it never ended, because the processes that it was given died. ``reused``: it was done before.
    """

    task: Task
    worker: Machine | None = None
    value: Any = None
    artifacts: tuple[FileDigest, ...] = ()
    error: GateNormError | None = None
    lost: bool = False
    reused: bool = False
    seconds: float = 0.0

    def result(self) -> Any:
        """The value.

        Raises:
            GateNormError: the task failed; the error is of the class that its function raised.
        """
        if self.error is not None:
            raise self.error
        return self.value


class Executor(Protocol):
    """Does tasks somewhere. Between :meth:`submit` and :meth:`finished` nothing is promised to have begun."""

    @property
    def in_process(self) -> bool:
        """Whether tasks run here, one after the other, with the progress that this process shows."""

    def machines(self, resources: Resources | None = None) -> tuple[Machine, ...]:
        """Where a task with these resources may run.

        Raises:
            RefusedError: nowhere.
        """

    def submit(self, task: Task) -> None:
        """Take on a task.

        Raises:
            RefusedError: no machine has what it needs.
        """

    def finished(self) -> Iterator[Outcome]:
        """Outcomes as they come, until no task is left; more may be submitted in between."""

    def artifact(self, artifact: FileDigest) -> Path:
        """Where an artifact of an outcome lies, its bytes checked.

        Raises:
            InputError: it is gone or damaged.
        """

    def close(self) -> None:
        """Give up what has not finished, and let go of the machines."""


def function_of(reference: str) -> Callable[[Call], Any]:
    """The function that ``module:name`` names.

    Raises:
        InputError: there is none on this machine.
    """
    module, _, name = reference.partition(":")
    try:
        found: Callable[[Call], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{reference}: cannot be found where the task runs ({error}); install the same there"
        ) from error
    return found


_DIGESTS: dict[tuple[str, int, int, int], str] = {}


def known_sha256(path: Path) -> str:
    """The sha256 of a file, computed once for as long as its size, inode and time of change stay.

    Many tasks read one graph of gigabytes; digesting it for each would take longer than the work.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    key = (str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = sha256_of(path)
    return _DIGESTS[key]
