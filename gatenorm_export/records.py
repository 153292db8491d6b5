"""What passes between the stages: frozen records, JSON in and out, never a tensor.

Every record carries its schema version and the versions of the tools that made it. Field names carry units. Files are
named by path and sha256, so that a stage can check that its input is the output of the stage before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from gatenorm_export.artifacts import sha256_of, write_text
from gatenorm_export.errors import InputError

SCHEMA_VERSION = 1

TOOLS = (
    "gatenorm",
    "numpy",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "optimum",
    "optimum-onnx",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
)


def tool_versions() -> dict[str, str]:
    """Versions of the installed packages that can influence a result. Absent ones are left out; nothing is imported."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Part(BaseModel):
    """A frozen value inside a record."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="strings")


class Record(Part):
    """A frozen value that has a file of its own."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: str
    versions: dict[str, str] = Field(default_factory=tool_versions)

    def to_json(self) -> str:
        """The record as indented JSON, ending in a newline; key order is the declaration order."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"

    def to_object(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return self.model_dump(mode="json", by_alias=True)

    def save(self, path: Path) -> None:
        """Write the record atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record of this class.

        Raises:
            InputError: no such file, no JSON, another kind of record, or another schema version.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as a {cls.__name__} record ({error})") from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise InputError(
                f"{path}: not a {cls.__name__} record of schema {SCHEMA_VERSION}: {where}: {first['msg']}"
            ) from error


class FileDigest(Part):
    """One file of a model or artifact, named relative to its folder."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, folder: Path) -> FileDigest:
        """Measure and digest ``path``; its name is taken relative to ``folder``."""
        return cls(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))


class ModelSpec(Part):
    """A pretrained checkpoint: where it is, what it is, and the digest of every byte that defines it."""

    name: str
    path: str
    source: Literal["safetensors", "gguf"]
    architecture: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    files: tuple[FileDigest, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def digest(self) -> str:
        """sha256 over the names and digests of all files: equal exactly when the checkpoint is equal."""
        lines = (f"{file.name} {file.sha256}\n" for file in sorted(self.files, key=lambda file: file.name))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Convention(Part):
    """How a score was computed where the paper leaves a choice; see the README's section on scores."""

    formula: str = "||Wq Wk^T||_F over all heads together (arXiv 2512.20636)"
    grouped_query: str = "key heads repeated to the query heads"
    biases: str = "left out"
    norm_weights: str = "not folded in"
    exactness: Literal["exact"] = "exact"
    arithmetic: str = "float64"
    checkpoint_dtype: str


class LayerScore(Part):
    """The Gate-Norm score of one attention sublayer."""

    layer: int
    score: float


class DepthTrend(Part):
    """Whether scores fall with depth: the paper's first check of the Attention Suppression Hypothesis."""

    spearman_rho: float
    falls_with_depth: bool
    sentence: str


class LayerScores(Record):
    """All scores of one checkpoint."""

    kind: Literal["scores"] = "scores"
    model: ModelSpec
    convention: Convention
    layers: tuple[LayerScore, ...]
    trend: DepthTrend


class PrunePlan(Record):
    """The attention sublayers to remove."""

    kind: Literal["plan"] = "plan"
    model_name: str
    model_digest: str
    scores_sha256: str
    n_layers: int
    policy: str
    protect: tuple[int, ...]
    drop: tuple[int, ...]


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


class StepError(Part):
    """The largest logit error of one step of the faithfulness check."""

    step: str
    max_abs_error: float
    tolerance: float
    passed: bool


class Faithfulness(Part):
    """Does the pruned graph compute what the framework computes with the same attention branches zeroed?"""

    passed: bool | None
    reason: str
    reference: str
    steps: tuple[StepError, ...] = ()
    max_abs_error: float | None = None
    logit_range: float | None = None
    tolerance: float | None = None
    tokens_equal: bool | None = None


class Quality(Part):
    """What pruning cost, on a text: pruned against unpruned. Natural logarithms; KL in nats per token."""

    text: str
    text_sha256: str
    n_tokens: int
    base_loss_nats: float
    pruned_loss_nats: float
    base_ppl: float
    pruned_ppl: float
    ppl_ratio: float
    kl_nats: float
    top1_agreement: float
    top5_agreement: float
    top10_agreement: float
    greedy_agreement: float
    greedy_tokens: int


class LatencyRow(Part):
    """One measured point: base and pruned alternate in one process; ratios are pruned speed over base speed."""

    phase: Literal["prefill", "decode"]
    sequence: int
    repeats: int
    base_p50_ms: float
    base_p90_ms: float
    pruned_p50_ms: float
    pruned_p90_ms: float
    base_tokens_per_s: float
    pruned_tokens_per_s: float
    speedup: float
    speedup_low: float
    speedup_high: float


class Latency(Part):
    """Latency of prefill and decode, and the device they were measured on."""

    backend: str
    device: str
    threads: int
    batch: int
    rows: tuple[LatencyRow, ...]
    prefill_speedup: float
    decode_speedup: float


class Sizes(Part):
    """Static costs of one of the two graphs."""

    facts: GraphFacts
    onnx_bytes: int
    engine_bytes: int | None


class Threshold(Part):
    """One gate of a pipeline: what was asked, what was measured, and whether it held."""

    name: str
    limit: float
    measured: float
    passed: bool


class ComparisonReport(Record):
    """Proof of one pruning: faithful or not, what it cost and what it gained."""

    kind: Literal["comparison"] = "comparison"
    base: str
    pruned: str
    base_sha256: str
    pruned_sha256: str
    dropped: tuple[int, ...]
    n_layers: int
    faithfulness: Faithfulness
    quality: Quality
    latency: Latency | None
    base_sizes: Sizes
    pruned_sizes: Sizes
    thresholds: tuple[Threshold, ...]
    verdict: str
    passed: bool
    device: str
    command: str


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
