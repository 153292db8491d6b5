"""The proof of one pruning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.bench import Probe, RooflineRow
from gatenorm_export.records.engine_accuracy import EngineAccuracy
from gatenorm_export.records.graph import GraphFacts


class StepError(Part):
    """The largest logit error of one step of the faithfulness check."""

    step: str
    max_abs_error: float
    tolerance: float
    passed: bool


class Faithfulness(Part):
    """Does the pruned graph compute what the framework computes with the same attention branches zeroed?"""

    passed: bool | None
    reason: str
    reference: str
    steps: tuple[StepError, ...] = ()
    max_abs_error: float | None = None
    logit_range: float | None = None
    tolerance: float | None = None
    tokens_equal: bool | None = None


class Quality(Part):
    """What pruning cost a decoder, on a text: pruned against unpruned. Natural logarithms; KL in nats per token."""

    measure: Literal["text"] = "text"
    text: str
    text_sha256: str
    n_tokens: int
    base_loss_nats: float
    pruned_loss_nats: float
    base_ppl: float
    pruned_ppl: float
    ppl_ratio: float
    kl_nats: float
    top1_agreement: float
    top5_agreement: float
    top10_agreement: float
    greedy_agreement: float
    greedy_tokens: int


class EmbeddingQuality(Part):
    """What pruning cost a model whose result is a vector: cosine of each item's two vectors, and their neighbours.

    ``neighbour_overlap`` is the mean share of the ``neighbours`` nearest items that both models have in common;
    ``spearman_rho`` the rank correlation of all pairs' similarities. Both are of the ``n_distinct`` items that the
    unpruned model tells apart, and None where these are too few or all equally near, as ``no_order_reason`` says.
    ``embedding`` says which vector was taken.
    """

    measure: Literal["embeddings"] = "embeddings"
    text: str
    text_sha256: str
    items: str
    n_items: int
    n_distinct: int | None = None
    """None in records of before it was counted, where items of one vector count as often as they come."""
    embedding: str
    mean_cosine: float
    min_cosine: float
    neighbours: int
    neighbour_overlap: float | None
    spearman_rho: float | None
    no_order_reason: str = ""

    @property
    def chance_overlap(self) -> float:
        """The share of the nearest neighbours that a model would keep by chance."""
        return self.neighbours / max((self.n_distinct or self.n_items) - 1, 1)


class ClassQuality(Part):
    """What pruning cost a model that chooses among classes, or a word for a masked place: KL in nats per item.

    ``top5_agreement`` is None of five classes or fewer, of which the best five are always the same.
    """

    measure: Literal["classes"] = "classes"
    text: str
    text_sha256: str
    items: str
    n_items: int
    n_classes: int
    top1_agreement: float
    top5_agreement: float | None
    kl_nats: float


class ScoreQuality(Part):
    """What pruning cost a model whose result is a score, such as a reranker, a reward model or a regression.

    ``spearman_rho`` is the rank correlation of both models' scores over the items: whether they sort alike.
    ``mean_deviation`` is the mean distance of an item's two scores, in standard deviations of the unpruned ones. Of
    several scores an item, both are means over them.
    """

    measure: Literal["scores"] = "scores"
    text: str
    text_sha256: str
    items: str
    n_items: int
    n_scores: int
    spearman_rho: float
    mean_deviation: float


class LabelQuality(Part):
    """What pruning cost a model that decides on each of several labels: one is given where its logit is above 0.

    ``decision_agreement`` is over all labels of all items, ``equal_items`` over items whose labels are all the same.
    ``common_labels`` is how many labels both give over how many at least one gives, all items together, which labels
    that are never given do not raise; None where neither model gives any.
    """

    measure: Literal["labels"] = "labels"
    text: str
    text_sha256: str
    items: str
    n_items: int
    n_labels: int
    n_given: int
    """Labels that the unpruned model gives, all items together."""
    decision_agreement: float
    equal_items: float
    common_labels: float | None


class TranscriptQuality(Part):
    """What pruning cost a speech model: tokens of greedy transcripts, and its predictions along the unpruned ones.

    ``token_error_rate`` is the edit distance of the two transcripts over the length of the unpruned one, all clips
    together. ``top1_agreement`` and ``kl_nats`` are of single predictions when both are given the unpruned transcript.
    """

    measure: Literal["transcript"] = "transcript"
    text: str
    text_sha256: str
    n_clips: int
    n_tokens: int
    token_error_rate: float
    equal_transcripts: float
    top1_agreement: float
    kl_nats: float


def _measure(value: Any) -> str:
    # Records of before there was a choice have no field.
    return str(value.get("measure", "text") if isinstance(value, dict) else getattr(value, "measure", value))


AnyQuality = Annotated[
    Annotated[Quality, Tag("text")]
    | Annotated[EmbeddingQuality, Tag("embeddings")]
    | Annotated[ClassQuality, Tag("classes")]
    | Annotated[ScoreQuality, Tag("scores")]
    | Annotated[LabelQuality, Tag("labels")]
    | Annotated[TranscriptQuality, Tag("transcript")],
    Discriminator(_measure),
]
"""The measure that fits the model. Of each, ``text`` and ``text_sha256`` name what it was judged on, text or not."""


class LatencyRow(Part):
    """One measured point: base and pruned alternate in one process; ratios are pruned speed over base speed.

    ``batch`` is set where it differs from row to row. ``roofline`` is what the removed work should have brought.
    """

    phase: Literal["prefill", "decode"]
    sequence: int
    batch: int | None = None
    repeats: int
    base_p50_ms: float
    base_p90_ms: float
    pruned_p50_ms: float
    pruned_p90_ms: float
    base_tokens_per_s: float
    pruned_tokens_per_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    roofline: RooflineRow | None = None


class Latency(Part):
    """Latency of prefill and decode, and the device they were measured on.

    A model that is no decoder has no decode: ``prefill`` is then its forward pass, and its rates are of ``unit``.
    ``probe`` is what the device was measured to do, for the roofline; ``roofline_reason`` says why there is none.
    ``notes`` are what a reader of the figures should know, such as that the machine was not idle.
    """

    backend: str
    device: str
    threads: int
    batch: int
    unit: str = "tokens"
    rows: tuple[LatencyRow, ...]
    prefill_speedup: float
    prefill_speedup_low: float | None = None
    prefill_speedup_high: float | None = None
    decode_speedup: float | None
    decode_speedup_low: float | None
    decode_speedup_high: float | None
    probe: Probe | None = None
    roofline_reason: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> tuple[str, float, float, float]:
        """The phase that counts, its speed-up and the interval: decode of a decoder, else the forward pass."""
        if self.decode_speedup is None or self.decode_speedup_low is None or self.decode_speedup_high is None:
            low, high = self.prefill_speedup_low, self.prefill_speedup_high
            value = self.prefill_speedup
            return "the forward pass", value, value if low is None else low, value if high is None else high
        return "decode", self.decode_speedup, self.decode_speedup_low, self.decode_speedup_high

    @property
    def decode_differs(self) -> bool:
        """Whether the interval of the decode speed-up lies to one side of 1; otherwise nothing was measured."""
        _, _, low, high = self.main
        return not low <= 1.0 <= high


class Sizes(Part):
    """Static costs of one of the two graphs."""

    facts: GraphFacts
    onnx_bytes: int
    engine_bytes: int | None


class Threshold(Part):
    """One gate of a pipeline: what was asked, what was measured, and whether it held."""

    name: str
    limit: float
    measured: float
    passed: bool


class ComparisonReport(Record):
    """Proof of one pruning: faithful or not, what it cost and what it gained."""

    kind: Literal["comparison"] = "comparison"
    base: str
    pruned: str
    base_sha256: str
    pruned_sha256: str
    tower: str = ""
    """The tower that ``dropped`` and ``n_layers`` count in, of a model with several."""
    dropped: tuple[int, ...]
    n_layers: int
    faithfulness: Faithfulness
    quality: AnyQuality
    latency: Latency | None
    repair_latency: Latency | None = None
    """Of a repaired graph: the same layers removed without repair stand as its ``base``."""
    engine_accuracy: tuple[EngineAccuracy, ...] = ()
    """Each engine against the graph that it was built from; empty where no engines were given."""
    engine_latency: Latency | None = None
    engine_latency_reason: str = ""
    """Why engines that were given were not timed."""
    base_sizes: Sizes
    pruned_sizes: Sizes
    thresholds: tuple[Threshold, ...]
    verdict: str
    passed: bool
    device: str
    command: str
