"""What is left of a finished task, so that it need not be done again."""

from __future__ import annotations

from typing import Any, Literal

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.model import FileDigest


class Machine(Part):
    """Where a task ran: the host's name, its processor and its GPU, in words."""

    host: str
    device: str
    gpu: str | None = None

    @property
    def kind(self) -> str:
        """What results that depend on the machine depend on; the host's name is not of it."""
        return self.device if self.gpu is None else f"{self.device}, {self.gpu}"


class TaskRecord(Record):
    """A finished task: ``key`` digests its function, arguments, inputs and tools; ``value`` is what it returned.

    ``artifacts`` are the files that it made, kept beside this record under their sha256.
    """

    kind: Literal["task"] = "task"
    key: str
    name: str
    function: str
    inputs: tuple[FileDigest, ...]
    value: Any
    artifacts: tuple[FileDigest, ...]
    worker: Machine
    seconds: float
