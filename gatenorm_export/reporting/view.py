"""The report's content as finished strings, in reading order. Both renderings are made from this, so they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gatenorm_export.records import ComparisonReport, Faithfulness, Latency, Quality
from gatenorm_export.reporting.formatting import (
    count,
    fixed,
    interval,
    layer_list,
    number,
    percent,
    size,
    times,
)
from gatenorm_export.reporting.material import ReportMaterial
from gatenorm_export.reporting.tables import (
    Table,
    convention_table,
    digests_table,
    engines_table,
    faithfulness_table,
    latency_table,
    profiles_table,
    quality_table,
    scores_table,
    sizes_table,
    thresholds_table,
    versions_table,
)

NO_LATENCY = "Latency was not measured in this comparison."


@dataclass(frozen=True)
class Card:
    """A key figure."""

    label: str
    value: str
    note: str
    tone: Literal["plain", "good", "bad"] = "plain"


@dataclass(frozen=True)
class Bar:
    """A labelled share of a whole, 0 to 100; None where it is no finite number."""

    label: str
    share: float | None
    text: str


@dataclass(frozen=True)
class SpeedRow:
    """One measured point as two bars, and its speed-up on an axis; positions in percent of the track."""

    label: str
    base: Bar
    pruned: Bar
    speedup: str
    interval: str
    low: float | None
    middle: float | None
    high: float | None


@dataclass(frozen=True)
class SpeedChart:
    """All points of one phase; ``one`` is where a speed-up of 1 lies on the axis from ``left`` to ``right``."""

    phase: str
    rows: tuple[SpeedRow, ...]
    one: float
    left: str
    right: str


@dataclass(frozen=True)
class Page:
    """A whole report."""

    model: str
    title: str
    verdict: str
    passed: bool
    lead: str
    cards: tuple[Card, ...]
    trend: str
    scores: Table
    agreement: tuple[Bar, ...]
    quality_source: str
    quality: Table
    speed: tuple[SpeedChart, ...]
    latency_source: str
    latency: Table | None
    kept: tuple[Bar, ...]
    sizes: Table
    faithfulness: str
    faithfulness_steps: Table | None
    thresholds: Table | None
    engines: Table | None
    engines_not_built: str
    profiles: tuple[Table, ...]
    facts: tuple[tuple[str, str], ...]
    command: str
    versions: Table
    digests: Table
    convention: Table
    made_by: str


def page_of(material: ReportMaterial) -> Page:
    """Turn the records into a report's content."""
    scores, plan, comparison = material.scores, material.plan, material.comparison
    latency, steps = comparison.latency, comparison.faithfulness.steps
    n_drop = len(set(plan.drop))
    noun = "attention sublayer" if n_drop == 1 else "attention sublayers"
    return Page(
        model=scores.model.name,
        title=f"{scores.model.name} without {n_drop} {noun}" if n_drop else f"{scores.model.name}, unpruned",
        verdict=comparison.verdict,
        passed=comparison.passed,
        lead=_lead(material),
        cards=_cards(comparison),
        trend=f"{scores.trend.sentence} Rank correlation of score and depth: {fixed(scores.trend.spearman_rho, 2)}.",
        scores=scores_table(scores, plan.drop, plan.protect),
        agreement=_agreement(comparison.quality),
        quality_source=f"Measured on {comparison.quality.text}, {count(comparison.quality.n_tokens)} tokens.",
        quality=quality_table(comparison.quality),
        speed=_speed(latency) if latency else (),
        latency_source=_latency_source(latency) if latency else NO_LATENCY,
        latency=latency_table(latency) if latency else None,
        kept=_kept(comparison),
        sizes=sizes_table(comparison),
        faithfulness=_faithfulness(comparison.faithfulness),
        faithfulness_steps=faithfulness_table(comparison.faithfulness) if steps else None,
        thresholds=thresholds_table(comparison.thresholds) if comparison.thresholds else None,
        engines=engines_table(material) if material.engines else None,
        engines_not_built=material.engines_not_built or ("" if material.engines else "No engine was asked for."),
        profiles=tuple(profiles_table(engine, material.role_of(engine)) for engine in material.engines),
        facts=_facts(material),
        command=comparison.command,
        versions=versions_table(material),
        digests=digests_table(material),
        convention=convention_table(scores),
        made_by=f"gatenorm {comparison.versions.get('gatenorm', '(version unknown)')}",
    )


def _lead(material: ReportMaterial) -> str:
    dropped = sorted(set(material.plan.drop))
    if not dropped:
        return "The plan is empty: no attention sublayer was removed."
    noun = "layer" if len(dropped) == 1 else "layers"
    return (
        f"{len(dropped)} of {material.plan.n_layers} attention sublayers were removed, in {noun} {layer_list(dropped)}, "
        f"chosen by the policy “{material.plan.policy}”."
    )


def _cards(comparison: ComparisonReport) -> tuple[Card, ...]:
    quality = comparison.quality
    before, after = comparison.base_sizes.facts, comparison.pruned_sizes.facts
    return (
        _speed_card(comparison.latency, "decode"),
        _speed_card(comparison.latency, "prefill"),
        Card(
            "KV cache kept",
            f"{after.n_attention}/{before.n_attention}",
            f"{size(before.kv_bytes_per_token)} → {size(after.kv_bytes_per_token)} per token",
        ),
        Card(
            "Perplexity ratio",
            fixed(quality.ppl_ratio, 3),
            f"{fixed(quality.base_ppl, 3)} → {fixed(quality.pruned_ppl, 3)}, 1 is unchanged",
        ),
        _faithful_card(comparison.faithfulness),
    )


def _speed_card(latency: Latency | None, phase: Literal["prefill", "decode"]) -> Card:
    label = f"{phase.capitalize()} speed-up"
    rows = [row for row in latency.rows if row.phase == phase] if latency else []
    if latency is None or not rows:
        return Card(label, "–", "not measured")
    bounds = interval(min(row.speedup_low for row in rows), max(row.speedup_high for row in rows))
    value = latency.decode_speedup if phase == "decode" else latency.prefill_speedup
    lengths = "sequence length" if len(rows) == 1 else "sequence lengths"
    return Card(label, times(value), f"{bounds} over {len(rows)} {lengths}")


def _faithful_card(faithfulness: Faithfulness) -> Card:
    if faithfulness.passed is None:
        return Card("Faithful", "not run", "see below for the reason")
    note = "no error recorded"
    if faithfulness.max_abs_error is not None and faithfulness.tolerance is not None:
        note = f"worst error {number(faithfulness.max_abs_error)}, tolerance {number(faithfulness.tolerance)}"
    return Card("Faithful", *(("yes", note, "good") if faithfulness.passed else ("no", note, "bad")))


def _faithfulness(faithfulness: Faithfulness) -> str:
    if faithfulness.passed is None:
        return f"This check was not run: {faithfulness.reason or 'no reason was recorded.'}"
    verb = "computes" if faithfulness.passed else "does not compute"
    words = [f"The pruned graph {verb} what {faithfulness.reference} computes with the same attention branches zeroed."]
    if faithfulness.max_abs_error is not None and faithfulness.tolerance is not None:
        words.append(
            f"Worst logit error {number(faithfulness.max_abs_error)}, tolerance {number(faithfulness.tolerance)}."
        )
    if faithfulness.logit_range is not None:
        words.append(f"The logits span {number(faithfulness.logit_range)}.")
    if faithfulness.tokens_equal is not None:
        words.append(f"The greedy tokens are {'equal' if faithfulness.tokens_equal else 'not equal'} at every step.")
    return " ".join([*words, faithfulness.reason]).strip()


def _agreement(quality: Quality) -> tuple[Bar, ...]:
    shares = (
        ("Same first choice", quality.top1_agreement),
        ("Top 5 in common", quality.top5_agreement),
        ("Top 10 in common", quality.top10_agreement),
        ("Same greedy text", quality.greedy_agreement),
    )
    return tuple(Bar(label, _position(share, 0, 1), percent(share)) for label, share in shares)


def _kept(comparison: ComparisonReport) -> tuple[Bar, ...]:
    base, pruned = comparison.base_sizes, comparison.pruned_sizes
    pairs = [
        ("KV cache", base.facts.kv_bytes_per_token, pruned.facts.kv_bytes_per_token),
        ("Graph nodes", base.facts.n_nodes, pruned.facts.n_nodes),
        ("Weights", base.facts.weight_bytes, pruned.facts.weight_bytes),
        ("ONNX files", base.onnx_bytes, pruned.onnx_bytes),
    ]
    if base.engine_bytes is not None and pruned.engine_bytes is not None:
        pairs.append(("Engine", base.engine_bytes, pruned.engine_bytes))
    return tuple(
        Bar(label, _position(after / before, 0, 1), f"{percent(after / before)} kept")
        for label, before, after in pairs
        if before
    )


def _latency_source(latency: Latency) -> str:
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"Measured with {latency.backend} on {latency.device}, {threads}, batch {latency.batch}."


def _speed(latency: Latency) -> tuple[SpeedChart, ...]:
    """Both phases on one speed-up axis, so that they can be compared; throughput bars are scaled per phase."""
    ends = [end for row in latency.rows for end in (row.speedup_low, row.speedup, row.speedup_high)]
    finite = [end for end in ends if math.isfinite(end)]
    left, right = min([*finite, 0.95]), max([*finite, 1.05])
    margin = 0.06 * (right - left)
    left, right = left - margin, right + margin
    charts = []
    for phase in dict.fromkeys(row.phase for row in latency.rows):
        rows = [row for row in latency.rows if row.phase == phase]
        rates = [rate for row in rows for rate in (row.base_tokens_per_s, row.pruned_tokens_per_s)]
        top = max([rate for rate in rates if math.isfinite(rate)], default=0.0) or 1.0
        shown = tuple(
            SpeedRow(
                label=f"{count(row.sequence)} tokens" if phase == "prefill" else f"after {count(row.sequence)} tokens",
                base=_rate("unpruned", row.base_tokens_per_s, top),
                pruned=_rate("pruned", row.pruned_tokens_per_s, top),
                speedup=times(row.speedup),
                interval=interval(row.speedup_low, row.speedup_high),
                low=_position(row.speedup_low, left, right),
                middle=_position(row.speedup, left, right),
                high=_position(row.speedup_high, left, right),
            )
            for row in rows
        )
        one = 100 * (1 - left) / (right - left)
        charts.append(SpeedChart(phase.capitalize(), shown, round(one, 2), times(left), times(right)))
    return tuple(charts)


def _rate(label: str, rate: float, top: float) -> Bar:
    return Bar(label, _position(rate, 0, top), f"{number(rate)} tokens/s")


def _position(value: float, left: float, right: float) -> float | None:
    """Where ``value`` lies between ``left`` and ``right``, in percent, kept within the track."""
    if not math.isfinite(value):
        return None
    return round(min(max(100 * (value - left) / (right - left), 0.0), 100.0), 2)


def _facts(material: ReportMaterial) -> tuple[tuple[str, str], ...]:
    model, comparison = material.scores.model, material.comparison
    total = sum(file.bytes for file in model.files)
    files = "1 file" if len(model.files) == 1 else f"{len(model.files)} files"
    return (
        ("Model", model.name),
        ("Architecture", model.architecture),
        (
            "Shape",
            f"{model.n_layers} layers, width {count(model.d_model)}, {model.n_heads} query heads and "
            f"{model.n_kv_heads} key heads of {model.head_dim}",
        ),
        ("Checkpoint", f"{model.source}, {files}, {size(total)}"),
        ("Policy", material.plan.policy),
        ("Removed", layer_list(sorted(set(material.plan.drop)))),
        ("Protected", layer_list(sorted(set(material.plan.protect)))),
        ("Device", comparison.device),
    )
