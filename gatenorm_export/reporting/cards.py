"""The key figures of a report."""

from __future__ import annotations

from dataclasses import dataclass

from gatenorm_export.records import ComparisonReport, Faithfulness, Latency
from gatenorm_export.reporting.engines import Tone, accuracy_card
from gatenorm_export.reporting.formatting import interval, number, size, times
from gatenorm_export.reporting.quality import quality_card
from gatenorm_export.reporting.roofline import lowest_share


@dataclass(frozen=True)
class Card:
    """A key figure."""

    label: str
    value: str
    note: str
    tone: Tone = "plain"


def cards_of(comparison: ComparisonReport) -> tuple[Card, ...]:
    """Speed, what is kept, quality, faithfulness; with engines and a roofline, these too."""
    before, after = comparison.base_sizes.facts, comparison.pruned_sizes.facts
    label, value, note = quality_card(comparison.quality)
    decoder = comparison.quality.measure == "text"
    speeds = ("decode", "prefill") if decoder else ("prefill",)
    cache = f"{size(before.kv_bytes_per_token)} → {size(after.kv_bytes_per_token)} per token"
    kept = Card(
        "KV cache kept" if before.kv_bytes_per_token else "Attention kept",
        f"{after.n_attention}/{before.n_attention}",
        cache if before.kv_bytes_per_token else "sublayers",
    )
    return (
        *(_speed_card(comparison.latency, phase, decoder=decoder) for phase in speeds),
        kept,
        Card(label, value, note),
        _faithful_card(comparison.faithfulness),
        *_more(comparison),
    )


def _more(comparison: ComparisonReport) -> tuple[Card, ...]:
    found = []
    engines_speed = comparison.engine_latency
    if engines_speed is not None:
        _, speedup, low, high = engines_speed.main
        found.append(Card("Decode of the engines", times(speedup), f"{interval(low, high)} on {engines_speed.device}"))
    share = lowest_share(engines_speed if engines_speed is not None else comparison.latency)
    if share is not None:
        found.append(Card("Of predicted speed-up", *share))
    engines = accuracy_card(comparison)
    if engines is not None:
        value, note, tone = engines
        found.append(Card("Engines right", value, note, tone))
    return tuple(found)


def _speed_card(latency: Latency | None, phase: str, *, decoder: bool) -> Card:
    label = f"{phase.capitalize()} speed-up" if decoder else "Speed-up"
    rows = [row for row in latency.rows if row.phase == phase] if latency else []
    if latency is None or not rows:
        return Card(label, "–", "not measured")
    if phase == "prefill" and decoder:
        value = latency.prefill_speedup
        bounds = interval(min(row.speedup_low for row in rows), max(row.speedup_high for row in rows))
    else:
        _, value, low, high = latency.main
        bounds = interval(low, high)
    varied = "sequence length" if rows[0].batch is None else "batch size"
    return Card(label, times(value), f"{bounds} over {len(rows)} {varied}{'' if len(rows) == 1 else 's'}")


def _faithful_card(faithfulness: Faithfulness) -> Card:
    if faithfulness.passed is None:
        return Card("Faithful", "not run", "see below for the reason")
    note = "no error recorded"
    if faithfulness.max_abs_error is not None and faithfulness.tolerance is not None:
        note = f"worst error {number(faithfulness.max_abs_error)}, tolerance {number(faithfulness.tolerance)}"
    return Card("Faithful", *(("yes", note, "good") if faithfulness.passed else ("no", note, "bad")))
