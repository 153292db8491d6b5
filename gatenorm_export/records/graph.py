"""Graphs and engines: what was made, and from what."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.model import FileDigest, ModelSpec

Weights = Literal["compact", "share"]
"""``compact`` copies the kept tensors into a data file of their own; ``share`` points into the source's data files."""

# A sha256 runs at 1 to 2 GB/s, a copy out of the page cache at 4: above this size a digest would be the larger part of
# pruning. Below it, it is a sixth of a second.
DIGEST_LIMIT_BYTES = 256 * 1024 * 1024


class GraphFile(Part):
    """One file of a graph, named relative to the graph's folder.

    ``sha256`` is None where only the size vouches for the file: data files of more than ``DIGEST_LIMIT_BYTES``, and
    shared data files that the parent's manifest holds no digest of. ONNX files always have one.
    """

    name: str
    bytes: int
    sha256: str | None

    @classmethod
    def of(cls, path: Path, *, folder: Path) -> GraphFile:
        """Measure ``path``, and digest it unless it is a large data file; its name is taken relative to ``folder``."""
        size = path.stat().st_size
        digested = size <= DIGEST_LIMIT_BYTES or path.suffix == ".onnx"
        return cls(name=path.relative_to(folder).as_posix(), bytes=size, sha256=sha256_of(path) if digested else None)


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
    tower: str = ""
    """Which tower of the model the graph holds, where it has several; cross-attention is in the decoder's."""
    graph: str
    files: tuple[FileDigest, ...]
    exporter: str
    opset: int
    precision: Literal["fp32"]
    max_abs_error: float
    tolerance: float


class RepairedLayer(Part):
    """One repaired layer. ``unexplained`` is the share of the target's squares left on text not fitted on."""

    layer: int
    ridge: float | None
    unexplained: float | None
    n_parameters: int
    flops_per_token: int


class RepairRecord(Part):
    """What takes the place of removed attention, what it was fitted on, and what it costs.

    ``removed_flops_per_token`` are those of the weights that the pruning took out, two for each parameter.
    """

    kind: str
    file: str
    text: str
    text_sha256: str
    n_tokens: int
    layers: tuple[RepairedLayer, ...]
    n_parameters: int
    flops_per_token: int
    removed_flops_per_token: int

    @property
    def flops_share(self) -> float:
        """FLOPs that come back, as a share of what the removed projections took."""
        return self.flops_per_token / self.removed_flops_per_token if self.removed_flops_per_token else 0.0


class PrunedGraph(Record):
    """An ONNX graph with attention sublayers taken out, and how it relates to its parent.

    ``files`` were written with the graph; ``shared`` are the source's data files that the graph points into.
    ``ancestors`` are the digests of the graphs that it was pruned from, the nearest first; None in files of versions
    that did not keep them. ``repair`` says what stands in for the removed attention, where something does.
    ``recovered_from`` is the digest of the checkpoint that was fine-tuned into ``model``; the graph's parent, with all
    its attention, was not kept then.
    """

    kind: Literal["pruned"] = "pruned"
    tower: str = ""
    graph: str
    files: tuple[GraphFile, ...]
    weights: Weights = "compact"
    shared: tuple[GraphFile, ...] = ()
    parent_sha256: str
    parent_path: str
    ancestors: tuple[str, ...] | None = None
    model: ModelSpec | None
    plan_sha256: str | None
    n_layers: int
    dropped: tuple[int, ...]
    dropped_cross: tuple[int, ...] = ()
    n_cross: int = 0
    layer_map: dict[int, int | None]
    kv_names: Literal["dense", "keep"]
    kv_cache: tuple[KVCache, ...]
    past_length_from: str | None
    before: GraphFacts
    after: GraphFacts
    repair: RepairRecord | None = None
    recovered_from: str | None = None

    @property
    def lineage(self) -> tuple[str, ...]:
        """The graphs that it was pruned from, as far as the record tells, the nearest first."""
        return self.ancestors or (self.parent_sha256,)
