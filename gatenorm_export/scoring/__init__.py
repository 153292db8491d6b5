"""Scores of attention sublayers, from weights alone."""

from __future__ import annotations

from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import Convention, LayerScore, LayerScores, ModelSpec
from gatenorm_export.scoring.gate_norm import gate_norm
from gatenorm_export.scoring.trend import depth_trend
from gatenorm_export.scoring.weights import query_key_weights


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
        trends={"": depth_trend([entry.score for entry in entries])},
    )


__all__ = ["depth_trend", "gate_norm", "score_model"]
