"""A Triton model repository that was written from a bundle: what is in it, and what could not be."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.bundle import Digest, FileName


class TritonModel(Part):
    """One model of a repository. ``does`` says in a few words what a client gets of it."""

    name: str
    backend: Literal["python", "onnxruntime", "tensorrt", "ensemble"]
    does: str


class TritonRepository(Record):
    """A model repository. ``left_out`` gives for each kind of model that the bundle has no part for the reason.

    ``notes`` are what whoever serves it has to know. ``files`` are all that were written, so that writing again touches
    nothing else.
    """

    kind: Literal["triton-repository"] = "triton-repository"
    bundle: str
    seal: Digest
    models: tuple[TritonModel, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()
    files: tuple[FileName, ...]
