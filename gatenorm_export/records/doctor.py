"""What `gatenorm doctor` found: the machine, the parts that stages need, and which stages can run."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record


class MachineFacts(Part):
    """What stages run on."""

    python: str
    executable: str
    system: str
    processor: str
    n_cpus: int
    """Those that this process may use."""
    memory_bytes: int | None
    free_memory_bytes: int | None


class PartFinding(Part):
    """A package, a runtime, a device or a program: whether it is there and works, and what to do where not."""

    name: str
    kind: Literal["package", "runtime", "device", "program", "headers"]
    state: Literal["ready", "missing", "unfit"]
    """``unfit``: it is there, but in a version that does not fit, or it does not load."""
    version: str | None = None
    detail: str = ""
    remedy: str | None = None


class PlaceFinding(Part):
    """A folder that gatenorm writes to."""

    name: str
    path: str
    writable: bool
    free_bytes: int | None


class StageFinding(Part):
    """Whether a stage can run here; if not, what it lacks and the commands that bring it."""

    name: str
    verb: str
    does: str
    ready: bool
    lacks: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()


class DoctorReport(Record):
    """All of it. ``asked`` are the stages that were asked for by name."""

    kind: Literal["doctor"] = "doctor"
    machine: MachineFacts
    parts: tuple[PartFinding, ...]
    places: tuple[PlaceFinding, ...]
    stages: tuple[StageFinding, ...]
    asked: tuple[str, ...] = ()
    asked_ready: bool | None = None
