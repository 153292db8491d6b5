"""The comparison in a sentence or three, for people."""

from __future__ import annotations

from gatenorm_export.records import Faithfulness, GraphFacts, Latency, Quality, Threshold

_DAMAGED_PPL_RATIO = 1.5
"""Above this a model's text is visibly worse; the paper's own plans stay far below it."""


def verdict(
    faithfulness: Faithfulness,
    quality: Quality,
    latency: Latency | None,
    thresholds: tuple[Threshold, ...],
    base: GraphFacts,
    pruned: GraphFacts,
    repair_latency: Latency | None = None,
) -> str:
    """Say what was proved, what was gained, what it cost, and what to do when that is too much."""
    if faithfulness.passed is False:
        return "NOT FAITHFUL: the pruned graph does not compute what it should, so no other figure means anything."
    parts = ["Faithful." if faithfulness.passed else "Faithfulness was not checked."]
    removed = base.n_attention - pruned.n_attention
    if removed == 0:
        parts.append("Nothing was removed.")
    else:
        saved = 1 - pruned.kv_bytes_per_token / base.kv_bytes_per_token if base.kv_bytes_per_token else 0.0
        gains = [_speed(latency)] if latency is not None else []
        gains += [f"makes the KV cache {saved:.0%} smaller"] if saved else []
        gains.append(f"multiplies perplexity by {quality.ppl_ratio:.2f}")
        listed = ", ".join(gains[:-1]) + (" and " if len(gains) > 1 else "") + gains[-1]
        parts.append(f"Removing {removed} of {base.n_attention} attention sublayers {listed}.")
    if repair_latency is not None:
        parts.append(_repair_speed(repair_latency))
    if quality.ppl_ratio > _DAMAGED_PPL_RATIO:
        parts.append("That damages the model: drop fewer layers, choose them with --guard, or repair with --repair.")
    missed = [threshold.name for threshold in thresholds if not threshold.passed]
    if missed:
        parts.append(f"Limits missed: {', '.join(missed)}.")
    return " ".join(parts)


def _speed(latency: Latency) -> str:
    # An interval that reaches across 1 is no proof of a gain.
    if latency.decode_speedup_low > 1.0:
        return f"makes decode {latency.decode_speedup:.2f}x as fast"
    return f"makes decode no faster beyond doubt ({latency.decode_speedup:.2f}x)"


def _repair_speed(latency: Latency) -> str:
    interval = f"{latency.decode_speedup_low:.3f} to {latency.decode_speedup_high:.3f}"
    finding = "With the repair" if latency.decode_differs else "The repair costs no measurable time:"
    return f"{finding} decode is {latency.decode_speedup:.3f} ({interval}) times as fast as without it."
