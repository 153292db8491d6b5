"""A bundle: one folder that is all a server needs, and what a check of it found."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.engine import Profile

UNSEALED = "0" * 64
"""Stands in the manifest for its own digest while that is computed."""

MOST_LAYERS = 65_536
"""No model has as many; a manifest that says so would make its reader count for hours."""

Role = Literal["graph", "weights", "engine", "record", "tokenizer", "config", "report", "licence"]
Dimension = int | str
Shape = tuple[Dimension, ...]
"""Lengths of the dimensions; a name where one is open."""


def _inside(name: str) -> str:
    """A relative POSIX path that stays inside its folder on every system."""
    parts = name.split("/")
    # A colon is a drive or a stream on Windows, a backslash a separator.
    bad = re.search(r'[\x00-\x1f\x7f\\:*?"<>|]', name) or any(part in {"", ".", ".."} for part in parts)
    if bad or any(part != part.strip() or part.endswith(".") for part in parts):
        raise ValueError(f"{name!r} is not the name of a file inside the folder")
    return name


FileName = Annotated[str, Field(max_length=1024), AfterValidator(_inside)]
Place = Annotated[int, Field(ge=0, lt=2**31)]
"""A token, or the place of an element."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BundleFile(Part):
    """One file of a bundle. ``not_reproducible`` says why the same inputs may give other bytes; else it is empty."""

    name: FileName
    bytes: int = Field(ge=0)
    sha256: Digest
    role: Role
    not_reproducible: str = ""


class TensorSpec(Part):
    """One input or output; ``dtype`` is numpy's name of it, and "bfloat16"."""

    name: str
    dtype: str
    shape: Shape


class CacheTensor(Part):
    """One cache tensor: what comes out as ``present`` goes in as ``past`` at the next step.

    ``layer`` counts in the unpruned model. ``shape`` is that of ``past``; an empty cache has the length 0 at
    ``length_axis`` and the number of sequences at ``batch_axis``.
    """

    layer: int
    past: str
    present: str
    role: Literal["key", "value", "other"]
    dtype: str
    shape: Shape
    batch_axis: int = Field(ge=0)
    length_axis: int = Field(ge=0)

    @model_validator(mode="after")
    def _has_axes(self) -> Self:
        if self.batch_axis == self.length_axis or max(self.batch_axis, self.length_axis) >= len(self.shape):
            raise ValueError(f"{self.past}: batch and length are no two axes of {list(self.shape)}")
        return self


class Decoding(Part):
    """How a decoder is stepped.

    Tokens [batch, step], mask [batch, past + step] and positions [batch, step], all int64, with the caches in the
    order of the graph's inputs give logits [batch, step, vocabulary] and the next caches.
    """

    token_input: str
    mask_input: str | None
    position_input: str | None
    logits_output: str
    caches: tuple[CacheTensor, ...]
    vocab_size: int = Field(gt=0)
    max_positions: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None


class BundleGraph(Part):
    """An ONNX file of the bundle. ``precision`` is that of most of its weights; ``contrib_operators`` are those of
    com.microsoft, which only ONNX Runtime has."""

    file: FileName
    sha256: Digest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    opset: int
    contrib_operators: tuple[str, ...]


class BundleEngine(Part):
    """A TensorRT engine of the bundle; inputs and outputs are the engine's own bindings, whose caches may be narrower
    than the graph's. ``not_reproducible`` says why two builds of it differ in bytes."""

    file: FileName
    record: FileName
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    flavour_version: str
    gpu: str | None
    capabilities: tuple[str, ...]
    precision: str
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    not_reproducible: str


class BundleModel(Part):
    """The source model: its name, architecture, and the digest of its checkpoint."""

    name: str
    architecture: str
    digest: str


class BundleProbe(Part):
    """What the graph answered when it was bundled: to ``prompt`` it continued with the greedy tokens ``answer``.

    Of a model that is no decoder ``prompt`` is empty, and ``answer`` has the places of the largest elements of its
    outputs, each along the last axis, for an input that gatenorm makes without chance.
    """

    prompt: tuple[Place, ...] = Field(max_length=64)
    answer: tuple[Place, ...] = Field(min_length=1, max_length=256)


class BundleClient(Part):
    """A client that runs the folder as it is; where it cannot, ``reason`` says why, and is empty otherwise.

    ``note`` says what it cannot do although it loads the folder.
    """

    name: Literal["optimum", "onnxruntime-genai"]
    reason: str
    note: str = ""


class BundleManifest(Record):
    """Everything in a bundle, what it was made from, and how it is run. ``name`` may become that of a folder.

    ``seal`` is the sha256 of the manifest's own file with 64 zeros in the seal's place. ``reproducible_sha256`` is that
    of the manifest without engines and without files that the same inputs may give other bytes of: bundles that agree
    in it are the same apart from these; None in those of versions that had none. ``graph`` is None where the
    bundle holds engines alone; ``companions`` are the other graphs of a speech model. ``decoding`` is None where
    ``no_decoding`` says why, ``licence`` where none is known.
    """

    kind: Literal["bundle"] = "bundle"
    seal: Digest = UNSEALED
    reproducible_sha256: Digest | None = None
    name: FileName
    task: Literal["decoder", "encoder", "vision", "speech"]
    licence: str | None
    licence_source: str | None
    model: BundleModel | None
    parent_sha256: str | None
    graph_sha256: str
    plan_sha256: str | None
    n_layers: int = Field(ge=0, le=MOST_LAYERS)
    dropped: tuple[int, ...]
    layer_map: dict[int, int | None]
    kv_names: Literal["dense", "keep"]
    graph: BundleGraph | None
    companions: tuple[BundleGraph, ...] = ()
    engines: tuple[BundleEngine, ...]
    decoding: Decoding | None
    no_decoding: str
    clients: tuple[BundleClient, ...]
    probe: BundleProbe | None
    files: tuple[BundleFile, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [file.name for file in self.files]
        # Case folded: two names that are one on some systems would overwrite each other.
        if len({name.casefold() for name in names}) != len(names):
            raise ValueError("files: a name is there twice")
        known = {file.name: file for file in self.files}
        graphs = (*((self.graph,) if self.graph else ()), *self.companions)
        for graph in graphs:
            if graph.file not in known or known[graph.file].sha256 != graph.sha256:
                raise ValueError(f"the graph {graph.file} is not among the files with that digest")
        if self.graph is not None and self.graph.sha256 != self.graph_sha256:
            raise ValueError("graph_sha256 is not the graph's")
        for engine in self.engines:
            missing = {engine.file, engine.record} - known.keys()
            if missing:
                raise ValueError(f"{min(missing)} is not among the files")
        return self

    def file(self, name: str) -> BundleFile:
        """The entry of a file.

        Raises:
            KeyError: there is none of that name.
        """
        return {file.name: file for file in self.files}[name]


class BundleCheck(Part):
    """One thing that was checked; ``passed`` is None where it could not be here, and ``finding`` says why."""

    check: Literal["manifest", "files", "signature", "load", "probe", "engine", "faithfulness"]
    passed: bool | None
    finding: str


class BundleVerification(Record):
    """What a check of a bundle found. ``touched`` are the files that were added, removed or changed."""

    kind: Literal["verification"] = "verification"
    bundle: str
    seal: str
    touched: tuple[str, ...]
    checks: tuple[BundleCheck, ...]

    @property
    def intact(self) -> bool:
        """Whether nothing was touched."""
        return not self.touched and all(
            check.passed is not False for check in self.checks if check.check in {"files", "manifest", "signature"}
        )

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)
