"""The orders in which layers can go: by score, by depth, by chance, by what attention does to the stream, by search."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gatenorm_export.errors import InputError, RefusedError, UsageError
from gatenorm_export.planning import RANKINGS, DropRequest, rank_layers
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import GuardReport, LayerScores, SweepOrder
from gatenorm_export.repairs import Repair

if TYPE_CHECKING:
    from gatenorm_export.calibrating import Corpus, StreamModel


@dataclasses.dataclass(frozen=True)
class Rank:
    """A ranking that a user asks for; ``seed`` is set for random ones."""

    kind: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.kind if self.seed is None else f"{self.kind}:{self.seed}"

    @property
    def needs_text(self) -> bool:
        """Whether it looks at the calibration text."""
        return self.kind in {"cosine", "guard"}


def parse_rank(text: str) -> Rank:
    """Read the name of a ranking.

    Raises:
        UsageError: there is no such ranking; the text lists those that exist.
    """
    match = re.fullmatch(r"(gate-norm|last|cosine|guard)|random:(\d{1,9})", text.strip())
    if match is None:
        raise UsageError(f"--rank {text.strip()!r}: there is no such ranking; there are {', '.join(RANKINGS)}")
    return Rank(match[1]) if match[1] else Rank("random", int(match[2]))


def weight_order(
    rank: Rank, layers: Sequence[int], scores: LayerScores | None, n_layers: int, graph: Path
) -> SweepOrder:
    """The order of a ranking that needs no text: ``gate-norm``, ``last`` or ``random``; ``layers`` are the graph's.

    Raises:
        InputError: ``gate-norm`` without scores.
        RefusedError: the scores are of a model of another depth.
    """
    if rank.kind == "last":
        return SweepOrder(rank=str(rank), layers=tuple(sorted(layers, reverse=True)))
    if rank.kind == "random":
        shuffled = np.random.default_rng(rank.seed).permutation(sorted(layers))
        return SweepOrder(rank=str(rank), layers=tuple(int(layer) for layer in shuffled))
    if scores is None:
        raise InputError(
            f"{graph}: the ranking gate-norm needs scores, and there is no scores.json in the folder above; name them "
            "with --scores, or sweep the checkpoint instead of the graph"
        )
    if len(scores.layers) != n_layers:
        raise RefusedError(
            f"{graph}: has {n_layers} attention layers, the scores have {len(scores.layers)}; score the model that "
            "the graph came from"
        )
    value = {entry.layer: entry.score for entry in scores.layers}
    ranked = [layer for layer in rank_layers(scores, DropRequest(drop=0), ordered=True).layers if layer in layers]
    return SweepOrder(rank=str(rank), layers=tuple(ranked), values=tuple(value[layer] for layer in ranked))


def cosine_order(model: StreamModel, tokens: np.ndarray, *, progress: Progress | None = None) -> SweepOrder:
    """Layers by the mean over ``tokens`` [windows, length] of 1 - cos(x, x + attention(x)), the lowest first.

    x is the stream that a layer's attention starts from in the unpruned model. Of equal means the deeper goes first.
    """
    from gatenorm_export.calibrating.fitting import WINDOWS_AT_ONCE

    progress = progress or Quiet()
    parts = [tokens[start : start + WINDOWS_AT_ONCE] for start in range(0, len(tokens), WINDOWS_AT_ONCE)]
    streams = [model.embed(part) for part in parts]
    means: dict[int, float] = {}
    with progress.task("measure what attention does to the stream", total=len(model.layers)) as bar:
        for layer in model.layers:
            total = 0.0
            for index, part in enumerate(parts):
                branch, _ = model.attend(layer, streams[index], part)
                total += float(_turns(streams[index], branch).sum())
                streams[index] = model.rest(layer, streams[index], branch, part).following
            means[layer] = total / tokens.size
            bar.advance()
    ranked = sorted(means, key=lambda layer: (means[layer], -layer))
    return SweepOrder(rank="cosine", layers=tuple(ranked), values=tuple(means[layer] for layer in ranked))


def _turns(stream: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """1 - cos(x, x + branch) for each token, in float64; a stream of zeros has no direction and counts as turned."""
    before, after = stream.astype(np.float64), stream.astype(np.float64) + branch
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return np.asarray(1.0 - (before * after).sum(axis=-1) / np.where(lengths > 0.0, lengths, 1.0))


def guard_order(
    model: StreamModel,
    corpus: Corpus,
    count: int,
    repair: Repair,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SweepOrder:
    """The first ``count`` layers of a greedy search. Its steps are nested, so they serve every smaller number too.

    The search goes on past the signs of a ruined model; the order says from which number of layers on they show.

    Raises:
        RefusedError: the repair cannot be fitted, or there are fewer layers.
    """
    from gatenorm_export.calibrating import GuardRequest, guard_layers

    request = GuardRequest(search="greedy", repair=repair, force=True)
    deepest_first = tuple(reversed(model.layers))
    _, report = guard_layers(model, corpus, deepest_first, count, request, cache=cache, progress=progress)
    ruined_from, reason = _ruin(report)
    return SweepOrder(
        rank="guard",
        repair=str(repair),
        layers=tuple(step.layer for step in report.steps),
        values=tuple(step.kl_nats for step in report.steps),
        ruined_from=ruined_from,
        reason=reason,
    )


def _ruin(report: GuardReport) -> tuple[int | None, str | None]:
    """The first step with one of guard's failure signatures, counted from 1, and the signature in words."""
    from gatenorm_export.calibrating.guard import failure_signature

    for number, step in enumerate(report.steps, 1):
        signature = failure_signature(report.base_ppl, step.ppl, step.cost)
        if signature is not None:
            return number, f"guard: removal {number}, layer {step.layer}, ruins the model: {signature}"
    return None, None
