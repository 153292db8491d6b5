"""What runs in a worker's process on a Ray cluster. Everything in and out is plain data, errors included."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export import errors
from gatenorm_export.artifacts import sha256_of_text
from gatenorm_export.errors import GateNormError, RefusedError
from gatenorm_export.executing.machine import alone, sharing, this_machine
from gatenorm_export.executing.running import Done, clear_left_overs, do, is_there, scratch_folder
from gatenorm_export.executing.store import CHUNK_BYTES, write_checked
from gatenorm_export.executing.tasks import InputFile, Task
from gatenorm_export.progress import Quiet
from gatenorm_export.records import FileDigest, tool_versions


def describe() -> dict[str, Any]:
    """The worker's machine."""
    return this_machine().model_dump()


def work(sent: Mapping[str, Any], shipped: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Do a task that :func:`packed` made. ``shipped`` holds references to the pieces of files, by sha256.

    The answer has ``missing``, the digests of inputs that are neither here nor shipped; or ``error``, a class of
    gatenorm.errors and its text; or ``value`` and ``artifacts`` with their bytes in pieces. What is no GateNormError is
    raised.
    """
    task = _unpacked(sent)
    answer: dict[str, Any] = {"worker": describe()}
    try:
        _check_versions(sent["versions"])
        paths = _found(task, shipped)
        if isinstance(paths, list):
            return answer | {"missing": paths}
        clear_left_overs(Path(tempfile.gettempdir()))
        with scratch_folder(None, label=sent["session"], held=True) as scratch:
            done = do(task, paths, scratch, Quiet(), sharing=sharing, alone=alone)
            value = json.loads(_in_your_words(json.dumps(done.value, ensure_ascii=False), task))
            return answer | {"value": value, "seconds": done.seconds, "artifacts": _packed_artifacts(done)}
    except GateNormError as error:
        return answer | {"error": (_public_class(error), _in_your_words(str(error), task))}


def packed(task: Task, session: str) -> dict[str, Any]:
    """A task as plain data, its paths absolute. ``session`` marks what the task writes on the way."""
    files = [dataclasses.asdict(file) | {"path": str(file.path.absolute())} for file in task.inputs]
    return {
        "name": task.name,
        "function": task.function,
        "arguments": dict(task.arguments),
        "inputs": files,
        "versions": tool_versions(),
        "session": session,
    }


def pieces_of(path: Path) -> Iterator[np.ndarray]:
    """The bytes of a file as arrays, which the object store takes and gives without a copy."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield np.frombuffer(piece, np.uint8)


def error_of(kind: str, text: str) -> GateNormError:
    """The error that a worker sent."""
    found: type[GateNormError] = getattr(errors, kind)
    return found(text)


def _unpacked(sent: Mapping[str, Any]) -> Task:
    files = tuple(InputFile(**{**file, "path": Path(file["path"])}) for file in sent["inputs"])
    return Task(sent["name"], sent["function"], sent["arguments"], files)


def _found(task: Task, shipped: Mapping[str, Sequence[Any]]) -> dict[str, Path] | list[str]:
    """The inputs by name: all at their own paths, or else all in a folder here. A list: what has to be shipped first.

    All or nothing, because a graph finds its data files by their place beside it.
    """
    if all(is_there(file) for file in task.inputs):
        return {file.name: file.path for file in task.inputs}
    folder = _cache() / sha256_of_text(" ".join(sorted(f"{file.name} {file.sha256}" for file in task.inputs)))
    paths = {file.name: folder / file.name for file in task.inputs}
    lacking = [file for file in task.inputs if not is_there(dataclasses.replace(file, path=paths[file.name]))]
    missing = [file.sha256 for file in lacking if file.sha256 not in shipped]
    if missing:
        return missing
    for file in lacking:
        digest = FileDigest(name=file.name, bytes=file.bytes, sha256=file.sha256)
        write_checked(paths[file.name], _fetched(shipped[file.sha256]), digest)
    return paths


def _fetched(references: Sequence[Any]) -> Any:
    import ray

    # One at a time: the pieces of a large file do not fit into memory together.
    return (ray.get(reference) for reference in references)


def _cache() -> Path:
    """Where shipped inputs are kept for later tasks: GATENORM_SHIPPED, or a folder in the user's cache."""
    import platformdirs

    named = os.environ.get("GATENORM_SHIPPED")
    return Path(named) if named else Path(platformdirs.user_cache_dir("gatenorm")) / "shipped"


def _check_versions(expected: Mapping[str, str]) -> None:
    """A package that both have must be the same: a result is kept under the versions of whoever asked for it."""
    here = tool_versions()
    other = [
        f"{name} {here[name]} instead of {expected[name]}"
        for name in here
        if here[name] != expected.get(name, here[name])
    ]
    if other:
        raise RefusedError(f"worker {this_machine().host}: has {', '.join(other)}; install the same versions there")


def _packed_artifacts(done: Done) -> list[tuple[dict[str, Any], list[np.ndarray]]]:
    if done.folder is None:
        return []
    return [(artifact.model_dump(), list(pieces_of(done.folder / artifact.name))) for artifact in done.artifacts]


def _public_class(error: GateNormError) -> str:
    """The first class that gatenorm.errors has; a stage's own subclass need not be importable where this arrives."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return next(name for name in kinds if hasattr(errors, name))


def _in_your_words(text: str, task: Task) -> str:
    """The text with the paths that the user knows in place of those of shipped copies."""
    folder = str(_cache())
    if folder not in text:
        return text
    digest = sha256_of_text(" ".join(sorted(f"{file.name} {file.sha256}" for file in task.inputs)))
    for file in sorted(task.inputs, key=lambda file: -len(file.name)):
        place = _cache() / digest / file.name
        text = text.replace(str(place), str(file.path))
        # A checkpoint is called by the folder of its files.
        text = text.replace(str(place.parent), str(file.path.parent))
    return text
