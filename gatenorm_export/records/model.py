"""What a checkpoint is, how its layers score, and which of them go."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, computed_field

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.guard import GuardReport


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
    layers: tuple[LayerScore, ...]
    trend: DepthTrend


class PrunePlan(Record):
    """The attention sublayers to remove; ``guard`` says what was measured where a plan was guarded."""

    kind: Literal["plan"] = "plan"
    model_name: str
    model_digest: str
    scores_sha256: str
    n_layers: int
    policy: str
    protect: tuple[int, ...]
    drop: tuple[int, ...]
    guard: GuardReport | None = None
