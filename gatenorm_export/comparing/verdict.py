"""The comparison in one sentence, for people."""

from __future__ import annotations

from gatenorm_export.records import (
    AnyQuality,
    ClassQuality,
    EmbeddingQuality,
    EngineAccuracy,
    Faithfulness,
    GraphFacts,
    LabelQuality,
    Latency,
    Quality,
    ScoreQuality,
    Threshold,
    TranscriptQuality,
)

_DAMAGED_PPL_RATIO = 1.5
"""Above this a model's text is visibly worse; the paper's own plans stay far below it."""

_DAMAGED_AGREEMENT = 0.5
"""Below this more answers change than stay: classes, labels, transcribed tokens, nearest neighbours beyond chance."""

_DAMAGED_COSINE = 0.5**0.5
"""Below this a vector has less left of what it was than it has got across it: it has turned by more than 45 degrees."""

_DAMAGED_ORDER = 0.7
"""Below this rank correlation about a quarter of all pairs of items or more change places."""


def verdict(
    faithfulness: Faithfulness,
    quality: AnyQuality,
    latency: Latency | None,
    thresholds: tuple[Threshold, ...],
    base: GraphFacts,
    pruned: GraphFacts,
    repair_latency: Latency | None = None,
    *,
    engines: tuple[EngineAccuracy, ...] = (),
    engine_latency: Latency | None = None,
) -> str:
    """Say in one sentence what was proved, what was gained, what it cost, and what to do when that is too much."""
    if faithfulness.passed is False:
        return "NOT FAITHFUL: the pruned graph does not compute what it should, so no other figure means anything."
    proved = "Faithful" if faithfulness.passed else "Not checked for faithfulness"
    removed = base.n_attention - pruned.n_attention
    if removed == 0:
        parts = [f"{proved}: nothing was removed"]
    else:
        saved = 1 - pruned.kv_bytes_per_token / base.kv_bytes_per_token if base.kv_bytes_per_token else 0.0
        gains = [_speed(latency)] if latency is not None else []
        gains += [f"makes the KV cache {saved:.0%} smaller"] if saved else []
        gains.append(_cost(quality))
        listed = ", ".join(gains[:-1]) + (" and " if len(gains) > 1 else "") + gains[-1]
        parts = [f"{proved}: removing {removed} of {base.n_attention} attention sublayers {listed}{_damage(quality)}"]
    if repair_latency is not None:
        parts.append(_repair_speed(repair_latency))
    if engines and all(engine.passed for engine in engines):
        parts.append("the engines compute what their graphs do")
    if engine_latency is not None:
        parts.append(f"on the GPU it {_speed(engine_latency)}")
    missed = [threshold.name for threshold in thresholds if not threshold.passed]
    if missed:
        parts.append(f"limits missed: {', '.join(missed)}")
    sentence = "; ".join(parts) + "."
    wrong = [engine.engine for engine in engines if engine.passed is False]
    if not wrong:
        return sentence
    verb = "do" if len(wrong) > 1 else "does"
    return (
        f"WRONG ENGINE: {' and '.join(wrong)} {verb} not compute what the graph does; of the graphs alone: "
        f"{sentence[0].lower()}{sentence[1:]}"
    )


def _cost(quality: AnyQuality) -> str:
    if isinstance(quality, Quality):
        return f"multiplies perplexity by {quality.ppl_ratio:.2f}"
    if isinstance(quality, EmbeddingQuality):
        return f"leaves embeddings at a cosine of {quality.mean_cosine:.3f} to what they were ({_neighbours(quality)})"
    if isinstance(quality, TranscriptQuality):
        return f"changes {quality.token_error_rate:.0%} of the transcripts' tokens"
    if isinstance(quality, ScoreQuality):
        moved = f"a score moves by {quality.mean_deviation:.2f} standard deviations"
        return f"leaves the scores at a rank correlation of {quality.spearman_rho:.3f} to what they were ({moved})"
    if isinstance(quality, LabelQuality):
        if quality.common_labels is None:
            return "leaves every label ungiven, as it was"
        kept = f"{quality.common_labels:.0%} of the labels that either model gives are given by both"
        return f"leaves {quality.decision_agreement:.0%} of the decisions on labels as they were ({kept})"
    return f"leaves {quality.top1_agreement:.0%} of the first choices as they were"


def _neighbours(quality: EmbeddingQuality) -> str:
    if quality.neighbour_overlap is None:
        return f"the cosine decides, for {quality.no_order_reason}"
    nearest = "nearest neighbours" if quality.neighbours == 1 else f"{quality.neighbours} nearest neighbours"
    return f"keeps {quality.neighbour_overlap:.0%} of the {nearest}, where chance keeps {quality.chance_overlap:.0%}"


def _damage(quality: AnyQuality) -> str:
    if isinstance(quality, Quality):
        ruined = quality.ppl_ratio > _DAMAGED_PPL_RATIO
        advice = "drop fewer layers, choose them with --guard, or repair with --repair"
    else:
        ruined, advice = _damaged(quality), "drop fewer layers"
    return f", which damages the model ({advice})" if ruined else ""


def _damaged(quality: EmbeddingQuality | ClassQuality | ScoreQuality | LabelQuality | TranscriptQuality) -> bool:
    if isinstance(quality, EmbeddingQuality):
        if quality.neighbour_overlap is None:
            return quality.mean_cosine < _DAMAGED_COSINE
        # Of few items chance alone keeps up to half of the neighbours.
        chance = quality.chance_overlap
        return quality.neighbour_overlap - chance < _DAMAGED_AGREEMENT * (1 - chance)
    if isinstance(quality, TranscriptQuality):
        return 1.0 - quality.token_error_rate < _DAMAGED_AGREEMENT
    if isinstance(quality, ScoreQuality):
        return quality.spearman_rho < _DAMAGED_ORDER
    if isinstance(quality, LabelQuality):
        return quality.common_labels is not None and quality.common_labels < _DAMAGED_AGREEMENT
    return quality.top1_agreement < _DAMAGED_AGREEMENT


def _speed(latency: Latency) -> str:
    phase, speedup, low, high = latency.main
    # An interval that reaches across 1 is no proof of a gain.
    if low > 1.0:
        return f"makes {phase} {speedup:.2f}x as fast"
    if high < 1.0:
        return f"makes {phase} slower ({speedup:.2f}x as fast)"
    return f"makes {phase} {speedup:.2f}x as fast (perhaps by noise alone: {low:.2f}x to {high:.2f}x)"


def _repair_speed(latency: Latency) -> str:
    phase, speedup, low, high = latency.main
    finding = "with the repair" if latency.decode_differs else "the repair costs no measurable time:"
    return f"{finding} {phase} is {speedup:.3f} ({low:.3f} to {high:.3f}) times as fast as without it"
