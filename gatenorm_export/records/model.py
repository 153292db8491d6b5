"""What a checkpoint is, how its layers score, and which of them go."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, FiniteFloat, computed_field, model_validator

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.guard import GuardReport
from gatenorm_export.records.sensitivity import FoldedNorms
from gatenorm_export.records.trend import DepthTrend


class FileDigest(Part):
    """One file of a model or artifact, named relative to its folder."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, folder: Path) -> FileDigest:
        """Measure and digest ``path``; its name is taken relative to ``folder``."""
        return cls(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))


Source = Literal["safetensors", "gguf", "torch", "onnx"]
"""What a checkpoint is kept in."""


class TowerSpec(Part):
    """One stack of attention sublayers. ``name`` is empty where a model has only one; else text, vision, encoder,
    decoder or cross. ``head_dim`` is the length of a query head. ``query_key_digest`` is xxh3-128 over the bytes of its
    query and key weights as they are stored, whatever files they lie in; None where they were not read."""

    name: str = ""
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    query_key_digest: str | None = None


class ModelSpec(Part):
    """A pretrained checkpoint: where it is, what it is, and the digests of what was read of it.

    ``path`` is a folder, a file or a URL. With ``whole``, ``files`` has every file that defines the checkpoint;
    without, only the small ones, for scoring reads no others whole. The patterns are a user's names of the query and
    key weights, where the family is not known.
    """

    name: str
    path: str
    source: Source
    architecture: str
    towers: tuple[TowerSpec, ...]
    files: tuple[FileDigest, ...]
    whole: bool = True
    query_pattern: str | None = None
    key_pattern: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def digest(self) -> str:
        """sha256 over the names and digests of all files: with ``whole``, equal exactly when the checkpoint is."""
        lines = (f"{file.name} {file.sha256}\n" for file in sorted(self.files, key=lambda file: file.name))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def query_key_digest(self) -> str | None:
        """Over the query and key weights of all towers; None where some were not read."""
        digests = [tower.query_key_digest for tower in self.towers]
        if None in digests:
            return None
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(map(str, digests)).encode()).hexdigest()

    @property
    def graph_sha256(self) -> str | None:
        """The sha256 of the ONNX file, where one is scored by itself; None for a checkpoint."""
        if self.source != "onnx":
            return None
        return next((file.sha256 for file in self.files if file.name == Path(self.path).name), None)

    @property
    def short_digest(self) -> str:
        """The start of ``query_key_digest``, for messages."""
        return (self.query_key_digest or "not scored")[:12]

    @property
    def n_layers(self) -> int:
        """Attention sublayers of a model with one tower; of several towers, those of the first."""
        return self.towers[0].n_layers

    def tower(self, name: str) -> TowerSpec:
        """The tower of that name.

        Raises:
            KeyError: there is none.
        """
        return {tower.name: tower for tower in self.towers}[name]

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class LayerScore(Part):
    """The Gate-Norm score of one attention sublayer; exact, or a sketch's estimate with the interval that holds it."""

    layer: int
    score: FiniteFloat
    tower: str = ""
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class CutCertainty(Part):
    """Whether the ``n`` lowest scores of a tower are known for certain, those of layers to ``protect`` aside; ``tied``
    are layers on both sides of the cut whose scores are equal as far as rounding tells."""

    tower: str = ""
    n: int
    certain: bool
    tied: tuple[int, ...] = ()
    protect: tuple[int, ...] = ()
    sentence: str


class LayerScores(Record):
    """All scores of one checkpoint; ``trends`` has one for each tower, and ``folded`` the scores with the norm weights
    folded in, where they were asked for."""

    kind: Literal["scores"] = "scores"
    model: ModelSpec
    layers: tuple[LayerScore, ...]
    trends: dict[str, DepthTrend]
    cuts: tuple[CutCertainty, ...] = ()
    folded: FoldedNorms | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Every tower that was scored is one of the model's, has a trend, and has one score of each layer."""
        named = {tower.name for tower in self.model.towers}
        if not self.layers:
            raise ValueError("holds no scores")
        for tower in self.towers:
            if tower not in named or tower not in self.trends:
                raise ValueError(f"has scores of a tower {tower!r}, and no trend of it or no such tower of the model")
            layers = [entry.layer for entry in self.of_tower(tower)]
            there = self.model.tower(tower).n_layers
            if len(layers) != there or len(set(layers)) != there:
                raise ValueError(f"scores {len(set(layers))} of the model's {there} layers, {len(layers)} times in all")
        return self

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of the towers that were scored, in order."""
        return tuple(dict.fromkeys(entry.tower for entry in self.layers))

    def of_tower(self, tower: str) -> tuple[LayerScore, ...]:
        """The scores of one tower, by layer."""
        return tuple(entry for entry in self.layers if entry.tower == tower)

    @property
    def trend(self) -> DepthTrend:
        """The trend of the first tower."""
        return self.trends[self.towers[0]]

    def narrowed(self, tower: str) -> LayerScores:
        """The same record with the scores of one tower alone."""
        return self.model_copy(
            update={
                "layers": self.of_tower(tower),
                "trends": {tower: self.trends[tower]},
                "cuts": tuple(cut for cut in self.cuts if cut.tower == tower),
            }
        )


class PrunePlan(Record):
    """The attention sublayers to remove; ``guard`` says what was measured where a plan was guarded."""

    kind: Literal["plan"] = "plan"
    model_name: str
    model_digest: str
    """``query_key_digest`` of the checkpoint that was scored."""
    graph_sha256: str | None = None
    """The ONNX file, where one was scored by itself."""
    scores_sha256: str
    tower: str = ""
    n_layers: int
    policy: str
    protect: tuple[int, ...]
    drop: tuple[int, ...]
    guard: GuardReport | None = None
