"""Executors by the name that a user gives, and resources as a user writes them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatenorm_export.errors import UsageError
from gatenorm_export.executing.local import LocalExecutor
from gatenorm_export.executing.tasks import Executor, Resources
from gatenorm_export.progress import Progress


@contextlib.contextmanager
def open_executor(
    name: str, folder: Path, *, resources: Resources | None = None, progress: Progress | None = None
) -> Iterator[Executor]:
    """``local``, ``ray``, or ``ray://HOST:PORT``; artifacts are kept in ``folder``. What still runs at the end stops.

    Raises:
        UsageError: there is no such executor; resources for the local one.
        InputError: no cluster answers.
        MissingPartError: ray is not installed.
    """
    executor: Executor
    check_executor(name, resources)
    if name == "local":
        executor = LocalExecutor(folder, progress=progress)
    else:
        from gatenorm_export.executing.ray_cluster import RayExecutor

        address = None if name == "ray" else name
        executor = RayExecutor(folder, address=address, resources=resources, progress=progress)
    try:
        yield executor
    finally:
        executor.close()


def check_executor(name: str, resources: Resources | None) -> None:
    """Make sure that there is such an executor, before any work.

    Raises:
        UsageError: there is none, or resources are given to the one that has none.
    """
    if name not in {"local", "ray"} and not re.fullmatch(r"ray://[^\s/]+:\d{1,5}", name):
        raise UsageError(f"--executor {name}: there is no such; there are local, ray and ray://HOST:PORT")
    if name == "local" and resources is not None:
        raise UsageError("--ray-resources belong to --executor ray; name that, or leave them out")


def parse_resources(text: str) -> Resources:
    """Read ``cpus=4,gpus=1,accelerator=H100,memory=16``, the memory in GiB; other names are a cluster's own.

    Raises:
        UsageError: not such a list.
    """
    found: dict[str, Any] = {}
    custom: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if not name or name in found or name in custom:
            raise UsageError(f"--ray-resources {text!r}: {part.strip()!r}: write each as NAME=AMOUNT, once")
        if name == "accelerator":
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", value):
                raise UsageError(f"--ray-resources {text!r}: {value!r} is no type of GPU; write accelerator=H100")
            found[name] = value
        elif name in {"cpus", "gpus", "memory"}:
            found[name] = _amount(text, part, value)
        else:
            custom[name] = _amount(text, part, value)
    memory = found.pop("memory", None)
    known = Resources(custom=custom, memory_bytes=int(memory * 2**30) if memory is not None else None)
    return dataclasses.replace(known, **found)


def _amount(text: str, part: str, value: str) -> float:
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf:
        raise UsageError(f"--ray-resources {text!r}: {part.strip()!r} has no amount above 0; write cpus=4")
    if amount > 1 and amount != int(amount):
        raise UsageError(f"--ray-resources {text!r}: {part.strip()!r}: above 1 only whole numbers can be had")
    return int(amount) if amount == int(amount) else amount
