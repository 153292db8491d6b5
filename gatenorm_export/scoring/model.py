"""From a checkpoint to the record of its scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatenorm_export.architectures import LayerTensors
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.planning import check_cut, share_of
from gatenorm_export.progress import Progress, Quiet, Task
from gatenorm_export.records import (
    Convention,
    CutCertainty,
    FoldedNorms,
    FoldedScore,
    LayerScore,
    LayerScores,
    ModelSpec,
)
from gatenorm_export.scoring.certify import Certainty
from gatenorm_export.scoring.gate_norm import Variant
from gatenorm_export.scoring.looking import NotFinite
from gatenorm_export.scoring.norms import folded, ranking_shift, require_norms
from gatenorm_export.scoring.stream import Scored, Scoring, score_layers
from gatenorm_export.scoring.trend import depth_trend
from gatenorm_export.scoring.weights import LayerWeights, TowerWeights, open_towers, query_key_digest
from gatenorm_export.urls import shown

_FORMULAS: dict[Variant, str] = {
    "all-heads": "||Wq Wk^T||_F over all heads together (arXiv 2512.20636)",
    "per-head": "sqrt(sum over heads of ||Wq_h Wk_h^T||_F^2)",
}


@dataclass(frozen=True)
class ScoreRequest:
    """How to score.

    ``towers`` None is all. ``cuts`` are numbers of layers, ``ratio`` a share of them: only which layers are among so
    many lowest must be certain then, those to ``protect`` aside. With ``exact``, or neither, every score is exact.
    ``device`` is auto, cpu, cuda or cuda:N.
    """

    towers: tuple[str, ...] | None = None
    cuts: tuple[int, ...] = ()
    ratio: float | None = None
    protect: tuple[int, ...] = ()
    exact: bool = False
    variant: Variant = "all-heads"
    fold_norms: bool = False
    device: str = "auto"


def score_model(
    spec: ModelSpec, request: ScoreRequest | None = None, *, progress: Progress | None = None
) -> LayerScores:
    """Score attention sublayers of a checkpoint with Gate-Norm.

    Raises:
        InputError: a tensor is missing or damaged, or a cut makes no sense.
        RefusedError: there is no such tower, or no norm weight to fold; names and shapes do not tell what is meant.
        MissingPartError: what reads the checkpoint, or the device, is not there.
    """
    request, progress = request or ScoreRequest(), progress or Quiet()
    with open_towers(spec) as opened:
        chosen = _choose(spec, opened, request.towers)
        if request.fold_norms:
            for weights in chosen:
                require_norms(weights.tower, spec.name, graph=spec.source == "onnx")
        if request.variant == "all-heads":
            # The gate matrix of all heads together stays the same, and latent attention becomes one small head.
            chosen = tuple(replace(weights, tower=weights.tower.joined()) for weights in chosen)
        parts = [_score_tower(weights, request, progress) for weights in chosen]
        shifted = [_fold(part, weights, request, progress) for part, weights in zip(parts, chosen, strict=True)]
    return _record(spec, request, parts, shifted)


@dataclass(frozen=True)
class _Part:
    """What scoring one tower gave."""

    tower: str
    layers: tuple[LayerScore, ...]
    cuts: tuple[CutCertainty, ...]
    digest: str
    layout: str
    guessed: str | None
    dtypes: tuple[str, ...]
    arithmetic: str
    bound: str | None


def _choose(
    spec: ModelSpec, opened: tuple[TowerWeights, ...], asked: tuple[str, ...] | None
) -> tuple[TowerWeights, ...]:
    if asked is None:
        return opened
    by_name = {weights.tower.name: weights for weights in opened}
    for name in asked:
        if name not in by_name:
            there = ", ".join(by_name) if set(by_name) != {""} else "one, without a name"
            raise RefusedError(f"{spec.name}: --tower {name}: there is no such tower; it has {there}")
    return tuple(by_name[name] for name in asked)


def cut_of(request: ScoreRequest, n_layers: int, tower: str = "") -> tuple[int, ...]:
    """The cuts of a tower of ``n_layers``.

    Raises:
        InputError: a negative number, or a ratio outside 0 to 1.
        RefusedError: more layers than there are.
    """
    cuts = list(request.cuts)
    if request.ratio is not None:
        cuts.append(share_of(request.ratio, n_layers))
    for cut in cuts:
        check_cut(cut, n_layers, tower)
    return tuple(sorted(set(cuts)))


def _score_tower(weights: TowerWeights, request: ScoreRequest, progress: Progress) -> _Part:
    tower = weights.tower
    layers = tuple(_Layer(weights, layer) for layer in tower.layers)
    label = f"score {tower.name}" if tower.name else "score"
    with progress.task(label, total=len(layers)) as bar:
        found = _finite(weights, layers, cut_of(request, len(layers), tower.name), request, bar)
    return _Part(
        tower=tower.name,
        layers=tuple(_entry(scored, tower.name) for scored in found.layers),
        cuts=tuple(_cut(one, tower.name, request.protect) for one in found.certainties),
        digest=query_key_digest({layer.layer: layer.digest for layer in layers}),
        layout=tower.layout.description,
        guessed=tower.guessed,
        dtypes=weights.dtypes,
        arithmetic=found.arithmetic,
        bound=found.bound,
    )


def _finite(
    weights: TowerWeights, layers: Sequence[_Layer], cuts: tuple[int, ...], request: ScoreRequest, bar: Task
) -> Scoring:
    try:
        return score_layers(
            layers,
            head_dim=weights.tower.head_dim,
            cuts=cuts,
            protect=request.protect,
            exact=request.exact,
            variant=request.variant,
            device=request.device,
            progress=bar,
        )
    except NotFinite as error:
        raise weights.damage(next(one.tensors for one in layers if one.layer == error.layer)) from error
    except ValueError as error:
        raise InputError(f"{weights.where}: cannot be scored ({error})") from error


class _Layer:
    """One layer as scoring reads it. Only the first reading makes a digest."""

    def __init__(self, weights: TowerWeights, tensors: LayerTensors, *, fold: bool = False) -> None:
        self._weights = weights
        self.tensors = tensors
        self.layer = tensors.layer
        self.digest = ""
        self._first: LayerWeights | None = None
        self._fold = fold

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Query and key, with the norm weight in them where it is to be folded."""
        loaded = self._weights.load(self.tensors)
        self._first = None if self.digest else loaded
        if not self._fold:
            return loaded.query, loaded.key
        try:
            return folded(loaded.query, loaded.key, self._weights.gain(self.tensors))
        except ValueError as error:
            raise InputError(f"{self._weights.where}: tensor {self.tensors.norm}: {error}") from error

    def take_digest(self) -> None:
        """Of the tensors as they were read first."""
        if self._first is not None:
            self.digest, self._first = self._first.digest, None


def _entry(scored: Scored, tower: str) -> LayerScore:
    exact = scored.low == scored.high
    return LayerScore(
        layer=scored.layer,
        score=scored.score,
        tower=tower,
        low=None if exact else scored.low,
        high=None if exact else scored.high,
    )


def _cut(found: Certainty, tower: str, protect: tuple[int, ...]) -> CutCertainty:
    of = (f" of {tower}" if tower else "") + (" that are not protected" if protect else "")
    tied = ", ".join(map(str, found.tied))
    if found.tied:
        sentence = (
            f"The {found.n} lowest scores{of} end in a tie of layers {tied}; of equal scores the deeper goes first."
        )
    elif found.certain:
        sentence = f"The {found.n} lowest scores{of} are certain."
    else:
        sentence = f"Which {found.n} scores{of} are the lowest is not certain; score with --exact."
    return CutCertainty(
        tower=tower, n=found.n, certain=found.certain, tied=found.tied, protect=protect, sentence=sentence
    )


def _fold(part: _Part, weights: TowerWeights, request: ScoreRequest, progress: Progress) -> FoldedNorms | None:
    """The same tower with its norm weights folded in, and how far that moves the ranking."""
    if not request.fold_norms:
        return None
    tower = weights.tower
    layers = tuple(_Layer(weights, layer, fold=True) for layer in tower.layers)
    exactly = replace(request, exact=True)
    with progress.task("score with the norm weights folded in", total=len(layers)) as bar:
        found = _finite(weights, layers, (), exactly, bar)
    scores = {one.layer: one.score for one in found.layers}
    plain = {entry.layer: entry.score for entry in part.layers}
    cuts = cut_of(request, len(plain))
    return FoldedNorms(
        layers=tuple(FoldedScore(layer=layer, score=score, tower=tower.name) for layer, score in scores.items()),
        shifts=tuple(
            ranking_shift(plain, scores, n=cut, protect=request.protect, tower=tower.name) for cut in cuts or (None,)
        ),
    )


def _record(
    spec: ModelSpec, request: ScoreRequest, parts: list[_Part], shifted: list[FoldedNorms | None]
) -> LayerScores:
    digests = {part.tower: part.digest for part in parts}
    towers = tuple(
        tower.model_copy(update={"query_key_digest": digests.get(tower.name, tower.query_key_digest)})
        for tower in spec.towers
    )
    layers = tuple(entry for part in parts for entry in part.layers)
    sketched = any(entry.low is not None for entry in layers)
    # A token in a URL opens the weights; a score file is shown to others.
    model = spec.model_copy(update={"towers": towers, "path": shown(spec.path)})
    there = [one for one in shifted if one is not None]
    return LayerScores(
        model=model,
        convention=Convention(
            variant=request.variant,
            formula=_FORMULAS[request.variant],
            exactness="sketched" if sketched else "exact",
            bound=next((part.bound for part in parts if part.bound), None),
            arithmetic=_joined(part.arithmetic for part in parts),
            layout=_joined(part.layout for part in parts),
            guessed=_joined(part.guessed for part in parts if part.guessed) or None,
            checkpoint_dtype=_joined(dtype for part in parts for dtype in part.dtypes),
            source_digest=model.query_key_digest or _joined(part.digest for part in parts),
        ),
        layers=layers,
        trends={part.tower: depth_trend([entry.score for entry in part.layers]) for part in parts},
        cuts=tuple(cut for part in parts for cut in part.cuts),
        folded=FoldedNorms(
            layers=tuple(layer for one in there for layer in one.layers),
            shifts=tuple(shift for one in there for shift in one.shifts),
        )
        if there
        else None,
    )


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
