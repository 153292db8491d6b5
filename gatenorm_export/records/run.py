"""A run folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.model import ModelSpec


class Artifact(Part):
    """One file of a run: what it is, and the artifacts it was made from, by sha256."""

    path: str
    bytes: int
    sha256: str
    parents: tuple[str, ...]


class StageEntry(Part):
    """A finished stage. ``key`` digests everything that decides its result; equal keys mean that it need not run."""

    key: str
    artifacts: tuple[Artifact, ...]


class RunManifest(Record):
    """Everything in a run folder, and where it came from."""

    kind: Literal["run"] = "run"
    command: str
    model: ModelSpec
    n_layers: int | None = None
    layer_map: dict[int, int | None] = Field(default_factory=dict)
    stages: dict[str, StageEntry] = Field(default_factory=dict)
    not_run: dict[str, str] = Field(default_factory=dict)
