"""Graphs and engines: what was made, and from what."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.model import FileDigest, ModelSpec


class KVCache(Part):
    """The key/value tensors of one attention sublayer in a graph's signature."""

    layer: int
    past: tuple[str, ...]
    present: tuple[str, ...]
    bytes_per_token: int


class GraphFacts(Part):
    """What can be counted in an ONNX graph without running it."""

    n_nodes: int
    n_parameters: int
    weight_bytes: int
    n_attention: int
    kv_bytes_per_token: int


class ExportedGraph(Record):
    """An ONNX graph that this toolchain exported, with what it was exported from."""

    kind: Literal["exported"] = "exported"
    model: ModelSpec
    graph: str
    files: tuple[FileDigest, ...]
    exporter: str
    opset: int
    precision: Literal["fp32"]
    max_abs_error: float
    tolerance: float


class PrunedGraph(Record):
    """An ONNX graph with attention sublayers taken out, and how it relates to its parent."""

    kind: Literal["pruned"] = "pruned"
    graph: str
    files: tuple[FileDigest, ...]
    parent_sha256: str
    parent_path: str
    model: ModelSpec | None
    plan_sha256: str | None
    n_layers: int
    dropped: tuple[int, ...]
    layer_map: dict[int, int | None]
    kv_names: Literal["dense", "keep"]
    kv_cache: tuple[KVCache, ...]
    past_length_from: str | None
    before: GraphFacts
    after: GraphFacts


class ProfileBounds(Part):
    """Lower, typical and upper shape of one engine input in one optimisation profile."""

    input: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Profile(Part):
    """One optimisation profile."""

    name: str
    bounds: tuple[ProfileBounds, ...]


class EngineArtifact(Record):
    """A TensorRT engine and the graph it was built from."""

    kind: Literal["engine"] = "engine"
    engine: str
    sha256: str
    bytes: int
    parent_sha256: str
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    flavour_version: str
    precision: Literal["fp32"]
    profiles: tuple[Profile, ...]
    n_network_layers: int
    n_inputs: int
    n_outputs: int
    build_seconds: float
    built_on: str
