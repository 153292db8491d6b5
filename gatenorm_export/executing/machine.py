"""The machine that a task runs on, and how its tasks keep quiet while one of them takes times."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.processor import device_name
from gatenorm_export.records.task import Machine


def this_machine() -> Machine:
    """The one that this runs on."""
    from gatenorm_export.building.gpus import find_gpu

    gpu = find_gpu()
    return Machine(host=platform.node(), device=device_name(), gpu=str(gpu) if gpu is not None else None)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Work that may run beside other such work, and never while someone is :func:`alone`."""
    with _locked(exclusive=False):
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Nothing else that shares the machine runs in this block. Whoever dies in it gives it up."""
    with _locked(exclusive=True):
        yield


@contextlib.contextmanager
def _locked(*, exclusive: bool) -> Iterator[None]:
    # A lock of the operating system and not a resource of the cluster: the latter would have to be declared on every
    # node when it is started, does not bind a second cluster, and does not keep untimed work away.
    import fcntl

    path = Path(tempfile.gettempdir()) / f"gatenorm-{os.getuid()}.lock"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
