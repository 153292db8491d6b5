"""Scores of attention sublayers, from weights alone."""

from __future__ import annotations

import numpy as np

from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import Convention, DepthTrend, LayerScore, LayerScores, ModelSpec
from gatenorm_export.scoring.gate_norm import gate_norm
from gatenorm_export.scoring.weights import query_key_weights

_FALLING_RHO = -0.5
"""Spearman correlation of score and depth from which on scores are said to fall: half of a perfect order."""


def score_model(spec: ModelSpec, *, progress: Progress | None = None) -> LayerScores:
    """Score every attention sublayer of a checkpoint with Gate-Norm.

    Raises:
        InputError: the architecture has no adapter, or a tensor is missing or damaged.
    """
    progress = progress or Quiet()
    entries, dtypes = [], set()
    with progress.task("score", total=spec.n_layers) as bar:
        for layer, query, key, dtype in query_key_weights(spec):
            entries.append(LayerScore(layer=layer, score=gate_norm(query, key, head_dim=spec.towers[0].head_dim)))
            dtypes.add(dtype)
            bar.advance()
    return LayerScores(
        model=spec,
        convention=Convention(checkpoint_dtype=", ".join(sorted(dtypes))),
        layers=tuple(entries),
        trend=depth_trend([entry.score for entry in entries]),
    )


def depth_trend(scores: list[float]) -> DepthTrend:
    """Whether scores fall with depth: Spearman's rank correlation of score and layer number, ties sharing ranks."""
    if len(scores) < 2 or len(set(scores)) == 1:
        return DepthTrend(spearman_rho=0.0, falls_with_depth=False, sentence="Too few different scores for a trend.")
    values = np.array(scores)
    ranks = np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
    rho = float(np.corrcoef(ranks, np.arange(len(scores)))[0, 1])
    falls = rho <= _FALLING_RHO
    sentence = (
        f"Scores fall with depth (Spearman {rho:.2f}), as the method expects of late layers that mute their attention."
        if falls
        else f"Scores do not fall with depth (Spearman {rho:.2f}): be wary, the method expects late layers to be muted."
    )
    return DepthTrend(spearman_rho=rho, falls_with_depth=falls, sentence=sentence)


__all__ = ["depth_trend", "gate_norm", "score_model"]
