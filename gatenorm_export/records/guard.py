"""What a guarded plan measured, and why it spares what it spares."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part


class GuardStep(Part):
    """One accepted removal. All figures are of the plan up to here, repaired; ``cost`` is the step's own ppl ratio."""

    layer: int
    kl_nats: float
    ppl: float
    ppl_ratio: float
    cost: float


class SparedLayer(Part):
    """A layer that was measured and stays: by what its removal would have multiplied perplexity, and the reason."""

    layer: int
    ppl_ratio: float
    protected: bool
    reason: str


class PlainCost(Part):
    """What as many layers taken by their scores alone would have cost: without repair, and with that of the search."""

    layers: tuple[int, ...]
    ppl_ratio: float
    repaired_ppl_ratio: float | None


class GuardReport(Part):
    """How a plan was guarded. Perplexities are of the measured windows, which no repair was fitted on.

    ``seconds`` is what the search took; None in a bundle, whose plan is the same whenever it was made.
    """

    search: Literal["order", "greedy"]
    repair: str
    budget: float | None
    candidates: tuple[int, ...]
    text: str
    text_sha256: str
    n_tokens: int
    base_ppl: float
    steps: tuple[GuardStep, ...]
    spared: tuple[SparedLayer, ...]
    n_measured: int
    seconds: float | None
    sentences: tuple[str, ...]
    plain: PlainCost | None = None
    forced: bool = False
