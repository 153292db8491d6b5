"""Several builds or benchmarks of one command: what each left, where it was done, and what failed."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.model import FileDigest
from gatenorm_export.records.task import Machine


class TaskDone(Part):
    """One that succeeded. ``files`` lie under the folder of the batch; ``reused`` says that it was done before."""

    name: str
    files: tuple[FileDigest, ...]
    worker: Machine
    seconds: float
    reused: bool


class TaskFailed(Part):
    """One that did not, and the exit code that the verb would have had with it alone."""

    name: str
    error: str
    exit_code: int


class BatchReport(Record):
    """All tasks of one command, in the order in which they were named."""

    kind: Literal["batch"] = "batch"
    verb: Literal["build", "bench"]
    command: str
    done: tuple[TaskDone, ...]
    failed: tuple[TaskFailed, ...]
