"""The report's content as finished strings, in reading order. Both renderings are made from this, so they agree."""

from __future__ import annotations

from dataclasses import dataclass

from gatenorm_export.records import ComparisonReport, Faithfulness, Latency, LayerScores
from gatenorm_export.reporting.calibration import guard_table, guard_words, repair_words
from gatenorm_export.reporting.cards import Card, cards_of
from gatenorm_export.reporting.engines import AccuracyView, accuracy_views, engines_table, profiles_table
from gatenorm_export.reporting.formatting import count, fixed, layer_list, number, percent, size
from gatenorm_export.reporting.material import ReportMaterial
from gatenorm_export.reporting.quality import agreement_bars, quality_source, quality_table
from gatenorm_export.reporting.roofline import roofline_words
from gatenorm_export.reporting.speed import Bar, SpeedChart, position, speed_charts
from gatenorm_export.reporting.tables import (
    Table,
    convention_table,
    digests_table,
    faithfulness_table,
    latency_table,
    scores_table,
    sizes_table,
    thresholds_table,
    versions_table,
)

HOW_TO_READ = (
    "Faithfulness and quality are different questions. Faithfulness asks whether the graph was cut correctly: its "
    "results must match the original framework with the same attention branches switched off, up to rounding. Quality "
    "asks what the cut costs: the pruned model is a different model, and its answers are expected to differ.",
    "The Gate-Norm score is read off the weights alone. A low score says that queries and keys of that layer interact "
    "weakly, so its attention is a candidate for removal. It is a ranking, not a promise; the quality table is the "
    "evidence.",
    "A speed-up above 1 means that the pruned graph was faster. Both graphs were timed in turns in one process; "
    "where an interval reaches below 1, the gain may be noise. Figures hold for the device, the threads and the "
    "lengths named here, and for no other.",
)

_DEPENDS: dict[str, str] = {
    "text": "Perplexity and agreement depend on the text. One short text says little about another language, code or a "
    "long conversation: measure on text of your own before you decide.",
    "embeddings": "Cosines and neighbours depend on the items. Vectors that moved alike still find the same "
    "neighbours, so the neighbours matter more than the cosine where vectors are compared with each other, and the "
    "cosine where they meet vectors of the unpruned model: measure on items of your own before you decide.",
    "classes": "Agreement depends on the items. Synthetic images, or one short text, say little about what the model "
    "will be given: measure on items of your own before you decide.",
    "scores": "The order of the scores depends on the items, and so does their spread. A reranker was given single "
    "texts here, not pairs of a query and a passage, and synthetic images are no photographs: measure on items of your "
    "own before you decide.",
    "labels": "Which labels are given depends on the items. Where few are, decisions agree almost whatever is removed, "
    "so the labels in common matter more: measure on items of your own that get labels before you decide.",
    "transcript": "The token error rate is against the unpruned model's transcript, not against what was said, and it "
    "depends on the sound. Synthetic clips hold no speech: measure on recordings of your own before you decide.",
}
"""The last paragraph, by the measure of quality."""

NO_LATENCY = "Latency was not measured in this comparison."


@dataclass(frozen=True)
class LatencyView:
    """One measurement of latency, or in ``source`` why there is none."""

    source: str
    charts: tuple[SpeedChart, ...]
    table: Table | None
    roofline: str
    notes: tuple[str, ...] = ()


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
    scores: Table | None
    guard: tuple[str, ...]
    guard_steps: Table | None
    repair: str
    agreement: tuple[Bar, ...]
    quality_source: str
    quality: Table
    latency: LatencyView
    engine_latency: LatencyView | None
    kept: tuple[Bar, ...]
    sizes: Table
    faithfulness: str
    faithfulness_steps: Table | None
    thresholds: Table | None
    engines: Table | None
    engines_not_built: str
    profiles: tuple[Table, ...]
    accuracy: tuple[AccuracyView, ...]
    facts: tuple[tuple[str, str], ...]
    command: str
    versions: Table
    digests: Table
    convention: Table
    how_to_read: tuple[str, ...]
    made_by: str


def page_of(material: ReportMaterial) -> Page:
    """Turn the records into a report's content."""
    scores, plan, comparison = material.scores, material.plan, material.comparison
    steps = comparison.faithfulness.steps
    n_drop = len(set(comparison.dropped))
    guard = plan.guard if plan is not None else None
    noun = "attention sublayer" if n_drop == 1 else "attention sublayers"
    return Page(
        model=material.name,
        title=f"{material.name} without {n_drop} {noun}" if n_drop else f"{material.name}, unpruned",
        verdict=comparison.verdict,
        passed=comparison.passed,
        lead=_lead(material),
        cards=cards_of(comparison),
        trend=_trend(scores) if scores is not None else "",
        scores=scores_table(scores, plan.drop, plan.protect) if scores is not None and plan is not None else None,
        guard=guard_words(guard) if guard is not None else (),
        guard_steps=guard_table(guard) if guard is not None and guard.steps else None,
        repair=repair_words(material.repair, comparison.repair_latency) if material.repair is not None else "",
        agreement=agreement_bars(comparison.quality),
        quality_source=quality_source(comparison.quality),
        quality=quality_table(comparison.quality),
        latency=_latency(comparison.latency, NO_LATENCY),
        engine_latency=_engine_latency(comparison),
        kept=_kept(comparison),
        sizes=sizes_table(comparison),
        faithfulness=_faithfulness(comparison.faithfulness),
        faithfulness_steps=faithfulness_table(comparison.faithfulness) if steps else None,
        thresholds=thresholds_table(comparison.thresholds) if comparison.thresholds else None,
        engines=engines_table(material) if material.engines else None,
        engines_not_built=material.engines_not_built or ("" if material.engines else "No engine was asked for."),
        profiles=tuple(profiles_table(engine, material.role_of(engine)) for engine in material.engines),
        accuracy=accuracy_views(material),
        facts=_facts(material),
        command=comparison.command,
        versions=versions_table(material),
        digests=digests_table(material),
        convention=convention_table(scores.convention if scores is not None else comparison.convention),
        how_to_read=(*(HOW_TO_READ if scores is not None else HOW_TO_READ[::2]), _DEPENDS[comparison.quality.measure]),
        made_by=f"gatenorm {comparison.versions.get('gatenorm', '(version unknown)')}",
    )


def _trend(scores: LayerScores) -> str:
    trend = scores.trend
    if trend.spearman_rho is None:
        return trend.sentence
    return f"{trend.sentence} Rank correlation of score and depth: {fixed(trend.spearman_rho, 2)}."


def _lead(material: ReportMaterial) -> str:
    comparison, plan = material.comparison, material.plan
    dropped = sorted(set(comparison.dropped))
    if not dropped:
        return "No attention sublayer was removed." if plan is None else _EMPTY_PLAN
    noun = "layer" if len(dropped) == 1 else "layers"
    chosen = f", chosen by the policy “{plan.policy}”" if plan is not None else ""
    verb = "was" if len(dropped) == 1 else "were"
    return (
        f"{len(dropped)} of {comparison.n_layers} attention sublayers {verb} removed, in {noun} {layer_list(dropped)}"
        f"{chosen}."
    )


_EMPTY_PLAN = "The plan is empty: no attention sublayer was removed."


def _faithfulness(faithfulness: Faithfulness) -> str:
    if faithfulness.passed is None:
        return f"This check was not run: {faithfulness.reason or 'no reason was recorded.'}"
    what, results = ("logit", "logits") if faithfulness.tokens_equal is not None else ("output", "outputs")
    verb = "computes" if faithfulness.passed else "does not compute"
    words = [f"The pruned graph {verb} what {faithfulness.reference} computes with the same attention branches zeroed."]
    if faithfulness.max_abs_error is not None and faithfulness.tolerance is not None:
        words.append(
            f"Worst {what} error {number(faithfulness.max_abs_error)}, tolerance {number(faithfulness.tolerance)}."
        )
    if faithfulness.logit_range is not None:
        words.append(f"The {results} span {number(faithfulness.logit_range)}.")
    if faithfulness.tokens_equal is not None:
        words.append(f"The greedy tokens are {'equal' if faithfulness.tokens_equal else 'not equal'} at every step.")
    return " ".join([*words, faithfulness.reason]).strip()


def _kept(comparison: ComparisonReport) -> tuple[Bar, ...]:
    base, pruned = comparison.base_sizes, comparison.pruned_sizes
    pairs = [
        ("KV cache per token", size, base.facts.kv_bytes_per_token, pruned.facts.kv_bytes_per_token),
        ("Graph nodes", count, base.facts.n_nodes, pruned.facts.n_nodes),
        ("Weights", size, base.facts.weight_bytes, pruned.facts.weight_bytes),
        ("ONNX files", size, base.onnx_bytes, pruned.onnx_bytes),
    ]
    if base.engine_bytes is not None and pruned.engine_bytes is not None:
        pairs.append(("Engine", size, base.engine_bytes, pruned.engine_bytes))
    return tuple(
        Bar(label, position(after / before, 0, 1), f"{show(after)} of {show(before)}, {percent(after / before)}")
        for label, show, before, after in pairs
        if before
    )


def _latency(latency: Latency | None, reason: str, *, on_cpu: bool = True) -> LatencyView:
    if latency is None:
        return LatencyView(reason, (), None, "")
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    place = f"{latency.device}, {threads}" if on_cpu else latency.device
    source = f"Measured with {latency.backend} on {place}, batch {latency.batch}."
    notes = tuple(f"{note[:1].upper()}{note[1:]}." for note in latency.notes)
    return LatencyView(source, speed_charts(latency), latency_table(latency), roofline_words(latency), notes)


def _engine_latency(comparison: ComparisonReport) -> LatencyView | None:
    """None where there are no engines."""
    reason = comparison.engine_latency_reason
    if comparison.engine_latency is None and not reason:
        return None
    return _latency(comparison.engine_latency, f"{reason[:1].upper()}{reason[1:]}.", on_cpu=False)


def _facts(material: ReportMaterial) -> tuple[tuple[str, str], ...]:
    model, plan, comparison = material.spec, material.plan, material.comparison
    facts: list[tuple[str, str]] = []
    if model is not None:
        tower = model.tower(comparison.tower)
        total = sum(file.bytes for file in model.files)
        files = "1 file" if len(model.files) == 1 else f"{len(model.files)} files"
        facts += [
            ("Model", model.name),
            ("Architecture", model.architecture),
            (
                "Shape",
                f"{tower.n_layers} layers, width {count(tower.d_model)}, {tower.n_heads} query heads and "
                f"{tower.n_kv_heads} key heads of {tower.head_dim}",
            ),
            ("Checkpoint", f"{model.source}, {files}, {size(total)}"),
        ]
    if plan is not None:
        facts.append(("Policy", plan.policy))
    facts.append(("Removed", layer_list(sorted(set(comparison.dropped)))))
    if plan is not None:
        facts.append(("Protected", layer_list(sorted(set(plan.protect)))))
    return (*facts, ("Device", comparison.device))
