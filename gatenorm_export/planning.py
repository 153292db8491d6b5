"""From scores to a plan: which attention sublayers go. Pure functions."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

from gatenorm_export.errors import RefusedError, UsageError
from gatenorm_export.records import GuardReport, LayerScore, LayerScores, PrunePlan

RANKINGS = {
    "gate-norm": "the lowest score first; of equal scores the deeper layer",
    "last": "the deepest layer first",
    "random:SEED": "a seeded shuffle, such as random:0",
    "cosine": "the least 1 - cos(x, x + attention(x)) on the calibration text first",
    "guard": "a greedy search by measured KL, with the repair of the cell",
}
"""Every ranking, and what goes first."""


@dataclasses.dataclass(frozen=True)
class DropRequest:
    """What a user asks to drop: exactly one of a number, a share of all layers, and a list; never the protected.

    ``tower`` names one of several stacks of layers, such as encoder; a model with one needs none.
    """

    drop: int | None = None
    ratio: float | None = None
    layers: tuple[int, ...] | None = None
    protect: tuple[int, ...] = ()
    tower: str | None = None

    @property
    def asked(self) -> bool:
        """Whether anything was asked for."""
        return any(choice is not None for choice in (self.drop, self.ratio, self.layers))


def parse_layers(text: str) -> tuple[int, ...]:
    """Read a list of layers such as ``24-27,29``; ranges include both ends, the result is sorted.

    Raises:
        UsageError: not such a list, a range that runs backwards, or a layer named twice.
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None:
            raise UsageError(f"layers {text!r}: {part.strip()!r} is neither a layer nor a range; write 24-27,29")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise UsageError(f"layers {text!r}: the range {part.strip()} runs backwards; write {last}-{first}")
        layers.extend(range(first, last + 1))
    twice = sorted({layer for layer in layers if layers.count(layer) > 1}) if len(set(layers)) < len(layers) else []
    if twice:
        raise UsageError(f"layers {text!r}: layer {twice[0]} is named twice; name each layer once")
    return tuple(sorted(layers))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Layers that may go, the first to go first; how many are asked for, and that in words."""

    layers: tuple[int, ...]
    count: int
    policy: str


def chosen_tower(scores: LayerScores, asked: str | None) -> str:
    """The tower that is asked for, or the only one.

    Raises:
        RefusedError: there is no such tower, or there are several and none was asked for.
    """
    towers = scores.towers
    if asked is None and len(towers) == 1:
        return towers[0]
    if asked not in towers:
        there = ", ".join(towers) if towers != ("",) else "one, without a name"
        what = "name one with --tower" if asked is None else f"--tower {asked}: there is no such tower"
        raise RefusedError(f"{scores.model.name}: {what}; it has {there}")
    return asked


def rank_layers(scores: LayerScores, request: DropRequest, *, ordered: bool = False) -> Ranking:
    """The layers that are not protected, by score; of equal scores the deeper layer goes first.

    With ``ordered`` every place counts, not only which layers are among the lowest.

    Raises:
        RefusedError: more layers than there are, or a layer that does not exist; sketched scores do not decide it.
        UsageError: not exactly one of number, ratio and list; a ratio outside 0 to 1; a negative number.
    """
    entries = scores.of_tower(chosen_tower(scores, request.tower))
    existing = {entry.layer for entry in entries}
    n_layers = len(existing)
    _check_exist(request.protect, existing, "protect")
    choices = [choice for choice in (request.drop, request.ratio, request.layers) if choice is not None]
    if len(choices) != 1:
        raise UsageError("a plan needs exactly one of --drop, --ratio and --layers")
    if request.layers is not None:
        _check_exist(request.layers, existing, "drop")
        clash = sorted(set(request.layers) & set(request.protect))
        if clash:
            raise RefusedError(f"layer {clash[0]} is both to be dropped and protected; take it out of one list")
        return Ranking(tuple(sorted(request.layers)), len(request.layers), "the layers that were asked for")
    count, policy = _count(request, n_layers)
    candidates = [entry for entry in entries if entry.layer not in request.protect]
    if count > len(candidates):
        protected = f", {len(set(request.protect))} of them protected" if request.protect else ""
        raise RefusedError(f"cannot drop {count} attention sublayers: there are {n_layers}{protected}")
    ranked = sorted(candidates, key=lambda entry: (entry.score, -entry.layer))
    if ordered:
        _check_exact(scores, entries)
    else:
        _check_cut(scores, ranked[:count], ranked[count:], request.protect)
    return Ranking(tuple(entry.layer for entry in ranked), count, policy)


def make_plan(scores: LayerScores, request: DropRequest, *, scores_sha256: str) -> PrunePlan:
    """Choose the layers: the lowest scores that are not protected; of equal scores the deeper layer goes first.

    Raises:
        RefusedError, InputError: as :func:`rank_layers`.
    """
    ranking = rank_layers(scores, request)
    return plan_of(scores, request, ranking.layers[: ranking.count], ranking.policy, scores_sha256=scores_sha256)


def plan_of(
    scores: LayerScores,
    request: DropRequest,
    drop: Iterable[int],
    policy: str,
    *,
    scores_sha256: str,
    guard: GuardReport | None = None,
) -> PrunePlan:
    """The record of a choice."""
    tower = chosen_tower(scores, request.tower)
    return PrunePlan(
        convention=scores.convention,
        model_name=scores.model.name,
        model_digest=scores.model.tower(tower).query_key_digest or "",
        graph_sha256=scores.model.graph_sha256,
        scores_sha256=scores_sha256,
        tower=tower,
        n_layers=len(scores.of_tower(tower)),
        policy=policy,
        protect=tuple(sorted(set(request.protect))),
        drop=tuple(sorted(drop)),
        guard=guard,
    )


def _check_cut(scores: LayerScores, chosen: list[LayerScore], rest: list[LayerScore], protect: tuple[int, ...]) -> None:
    """Sketched scores decide a cut when no interval reaches across it, or when scoring called what does a tie."""
    if not chosen or not rest:
        return
    highest = max(entry.high if entry.high is not None else entry.score for entry in chosen)
    lowest = min(entry.low if entry.low is not None else entry.score for entry in rest)
    if highest <= lowest:
        return
    n, of = len(chosen), (chosen[0].tower, set(protect))
    if any(cut.n == n and (cut.tower, set(cut.protect)) == of and (cut.certain or cut.tied) for cut in scores.cuts):
        return
    spared = f" --protect {','.join(map(str, sorted(of[1])))}" if protect else ""
    raise RefusedError(
        f"{scores.model.name}: its scores are sketched and do not decide which {n} are the lowest; score it again "
        f"with --drop {n}{spared} or --exact"
    )


def _check_exact(scores: LayerScores, entries: tuple[LayerScore, ...]) -> None:
    if any(entry.low is not None for entry in entries):
        raise RefusedError(
            f"{scores.model.name}: its scores are sketched, and their order is needed here; score it again with --exact"
        )


def _count(request: DropRequest, n_layers: int) -> tuple[int, str]:
    if request.drop is not None:
        check_cut(request.drop, n_layers)
        return request.drop, f"the {request.drop} lowest scores"
    ratio = request.ratio
    assert ratio is not None
    count = share_of(ratio, n_layers)
    return count, f"the lowest {ratio:g} of {n_layers} scores, rounded down to {count}"


def check_cut(count: int, n_layers: int, tower: str = "") -> None:
    """Refuse a number of layers that there are not; ``tower`` is the one they are of, where a model has several.

    Raises:
        UsageError: it is negative.
        RefusedError: there are fewer.
    """
    if count < 0:
        raise UsageError(f"cannot drop {count} layers; give a number from 0 to {n_layers}")
    if count > n_layers:
        of, choose = (f" of {tower}", "; choose a tower with --tower") if tower else ("", "")
        raise RefusedError(f"cannot drop {count} attention sublayers{of}: there are {n_layers}{choose}")


def share_of(ratio: float, n_layers: int) -> int:
    """How many layers a share of them is, rounded down.

    Raises:
        UsageError: it is no share.
    """
    if not 0.0 <= ratio <= 1.0:
        raise UsageError(f"a ratio of {ratio:g} is no share of the layers; give 0 to 1")
    # The hair keeps 0.1 of 30 at 3: the product of two floats can fall just below the whole number.
    return math.floor(ratio * n_layers + 1e-9)


def _check_exist(layers: tuple[int, ...], existing: set[int], verb: str) -> None:
    beyond = sorted(set(layers) - existing)
    if beyond:
        raise RefusedError(
            f"cannot {verb} layer {beyond[0]}: the model has {len(existing)} layers, {min(existing)} to {max(existing)}"
        )
