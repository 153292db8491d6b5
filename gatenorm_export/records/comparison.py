"""The proof of one pruning."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record
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
    """What pruning cost, on a text: pruned against unpruned. Natural logarithms; KL in nats per token."""

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


class LatencyRow(Part):
    """One measured point: base and pruned alternate in one process; ratios are pruned speed over base speed."""

    phase: Literal["prefill", "decode"]
    sequence: int
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


class Latency(Part):
    """Latency of prefill and decode, and the device they were measured on."""

    backend: str
    device: str
    threads: int
    batch: int
    rows: tuple[LatencyRow, ...]
    prefill_speedup: float
    decode_speedup: float
    decode_speedup_low: float
    decode_speedup_high: float

    @property
    def decode_differs(self) -> bool:
        """Whether the interval of the decode speed-up lies to one side of 1; otherwise nothing was measured."""
        return not self.decode_speedup_low <= 1.0 <= self.decode_speedup_high


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
    dropped: tuple[int, ...]
    n_layers: int
    faithfulness: Faithfulness
    quality: Quality
    latency: Latency | None
    repair_latency: Latency | None = None
    """Of a repaired graph: the same layers removed without repair stand as its ``base``."""
    base_sizes: Sizes
    pruned_sizes: Sizes
    thresholds: tuple[Threshold, ...]
    verdict: str
    passed: bool
    device: str
    command: str
