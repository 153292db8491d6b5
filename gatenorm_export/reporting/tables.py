"""The tables of a report, as finished strings: the Markdown and the HTML page show the same cells."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from gatenorm_export.records import (
    ComparisonReport,
    Convention,
    Faithfulness,
    Latency,
    LatencyRow,
    LayerScores,
    Threshold,
)
from gatenorm_export.reporting.formatting import (
    SPACE,
    change,
    count,
    fixed,
    interval,
    milliseconds,
    number,
    percent,
    size,
    times,
    verdict_word,
)
from gatenorm_export.reporting.material import ReportMaterial

Cells = tuple[str, ...]

_JUDGED_ON = {"text": "Text", "transcript": "Sound"}


@dataclass(frozen=True)
class Column:
    """A column's heading and how its cells are set."""

    name: str
    kind: Literal["text", "number", "code"] = "text"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Cells, ...]


def scores_table(scores: LayerScores, drop: tuple[int, ...], protect: tuple[int, ...]) -> Table:
    """Every layer's score and what the plan does with it."""
    finite = [abs(row.score) for row in scores.layers if math.isfinite(row.score)]
    decimals = max(0, 4 - len(str(int(max(finite, default=0.0)))))
    rows = []
    for row in scores.layers:
        score = fixed(row.score, max(decimals, 1)) if max(finite, default=0.0) >= 1 else number(row.score, 4)
        words = [word for word, marked in (("✕ dropped", drop), ("◆ protected", protect)) if row.layer in marked]
        rows.append((str(row.layer), score, ", ".join(words) or "kept"))
    return Table(
        "Gate-Norm score of every layer",
        (Column("Layer", "number"), Column("Score", "number"), Column("Decision")),
        tuple(rows),
    )


def latency_table(latency: Latency) -> Table:
    """Every measured point; the batch where that is what varies, and the roofline's prediction where there is one."""
    predicted = any(row.roofline is not None for row in latency.rows)
    rows = tuple(
        (
            row.phase if latency.decode_speedup is not None else "forward",
            count(row.sequence if row.batch is None else row.batch),
            _two(row.base_p50_ms, row.base_p90_ms),
            _two(row.pruned_p50_ms, row.pruned_p90_ms),
            f"{number(row.base_tokens_per_s)} / {number(row.pruned_tokens_per_s)}",
            times(row.speedup),
            interval(row.speedup_low, row.speedup_high),
            *((_prediction(row),) if predicted else ()),
            count(row.repeats),
        )
        for row in latency.rows
    )
    varies = "Sequence" if all(row.batch is None for row in latency.rows) else "Batch"
    names = (varies, "Unpruned p50 / p90", "Pruned p50 / p90", f"{latency.unit.capitalize()}/s unpruned / pruned")
    roofline = ("Found of predicted",) if predicted else ()
    numbers = tuple(Column(name, "number") for name in (*names, "Speed-up", "Interval", *roofline, "Repeats"))
    caption = "Latency by phase and sequence length" if latency.decode_speedup is not None else "Latency"
    return Table(caption, (Column("Phase"), *numbers), rows)


def _two(p50: float, p90: float) -> str:
    """Two durations with the unit once, where it is the same."""
    first, second = milliseconds(p50), milliseconds(p90)
    unit = first.rpartition(SPACE)[2]
    return f"{first.rpartition(SPACE)[0]} / {second}" if second.endswith(f"{SPACE}{unit}") else f"{first} / {second}"


def _prediction(row: LatencyRow) -> str:
    found = row.roofline
    if found is None:
        return "–"
    word = {True: "", False: ", short", None: ", not decided"}[found.reached(row.speedup_low)]
    return f"{percent(found.share)} of {times(found.speedup)}{word}"


def sizes_table(comparison: ComparisonReport) -> Table:
    """Static costs of both graphs and of their engines."""
    base, pruned = comparison.base_sizes, comparison.pruned_sizes
    before, after = base.facts, pruned.facts
    rows: list[Cells] = [
        (name, show(old), show(new), change(old, new))
        for name, show, old, new in (
            ("Attention sublayers", count, before.n_attention, after.n_attention),
            ("Nodes in the graph", count, before.n_nodes, after.n_nodes),
            ("Parameters", count, before.n_parameters, after.n_parameters),
            ("Weights", size, before.weight_bytes, after.weight_bytes),
            *(
                # A model that is no decoder has none.
                [("KV cache per token", size, before.kv_bytes_per_token, after.kv_bytes_per_token)]
                if before.kv_bytes_per_token
                else []
            ),
            ("ONNX files", size, base.onnx_bytes, pruned.onnx_bytes),
        )
    ]
    if base.engine_bytes is not None or pruned.engine_bytes is not None:
        both = base.engine_bytes is not None and pruned.engine_bytes is not None
        ratio = change(base.engine_bytes or 0, pruned.engine_bytes or 0) if both else "not defined"
        shown = tuple("not built" if n is None else size(n) for n in (base.engine_bytes, pruned.engine_bytes))
        rows.append(("TensorRT engine", *shown, ratio))
    columns = (Column("What"), *(Column(name, "number") for name in ("Unpruned", "Pruned", "Change")))
    return Table("Sizes", columns, tuple(rows))


def faithfulness_table(faithfulness: Faithfulness) -> Table:
    """The error of every step of the check."""
    rows = tuple(
        (step.step, number(step.max_abs_error), number(step.tolerance), verdict_word(step.passed))
        for step in faithfulness.steps
    )
    error = "Worst logit error" if faithfulness.tokens_equal is not None else "Worst error"
    numbers = (Column(error, "number"), Column("Tolerance", "number"))
    return Table("Faithfulness, step by step", (Column("Step"), *numbers, Column("Result")), rows)


def thresholds_table(thresholds: tuple[Threshold, ...]) -> Table:
    """The gates of a pipeline."""
    rows = tuple(
        (gate.name, number(gate.limit, 4), number(gate.measured, 4), verdict_word(gate.passed)) for gate in thresholds
    )
    columns = (Column("Threshold"), Column("Limit", "number"), Column("Measured", "number"), Column("Result"))
    return Table("Thresholds", columns, rows)


def digests_table(material: ReportMaterial) -> Table:
    """What the figures stand on, byte for byte."""
    comparison = material.comparison
    rows: list[Cells] = []
    if material.spec is not None:
        rows.append(("Checkpoint", material.spec.path, material.spec.digest))
    if material.plan is not None:
        rows.append(("Its query and key weights (xxh3-128)", "", material.plan.model_digest))
        rows.append(("Scores the plan was made from", "", material.plan.scores_sha256))
    rows += [
        ("Unpruned graph", comparison.base, comparison.base_sha256),
        ("Pruned graph", comparison.pruned, comparison.pruned_sha256),
        (_JUDGED_ON.get(comparison.quality.measure, "Items"), comparison.quality.text, comparison.quality.text_sha256),
    ]
    rows += [(f"Engine, {material.role_of(engine)}", engine.engine, engine.sha256) for engine in material.engines]
    return Table("Digests", (Column("What"), Column("Where"), Column("sha256", "code")), tuple(rows))


def versions_table(material: ReportMaterial) -> Table:
    """Tool versions; where the records were made with different ones, every version and who used it."""
    users: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    records = (material.scores, material.plan, *material.engines, material.comparison)
    for record in (found for found in records if found is not None):
        for tool, version in record.versions.items():
            users[tool][version].append(record.kind)
    rows: list[Cells] = []
    for tool, versions in users.items():
        several = "; ".join(f"{version} ({', '.join(dict.fromkeys(kinds))})" for version, kinds in versions.items())
        rows.append((tool, several if len(versions) > 1 else next(iter(versions))))
    return Table("Versions", (Column("Tool"), Column("Version")), tuple(rows))


def convention_table(convention: Convention) -> Table:
    """How the scores were computed where the paper leaves a choice."""
    rows = tuple((name.replace("_", " ").capitalize(), str(value)) for name, value in convention)
    return Table("Convention of the scores", (Column("Choice"), Column("Made")), rows)
