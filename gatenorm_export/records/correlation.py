"""Gate-Norm beside what attention does to the residual stream on a text."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record

Measure = Literal["norm_ratio", "cosine"]


class LayerMeasures(Part):
    """One attention sublayer: its Gate-Norm score, and means over the tokens of the text.

    With x the stream that enters the block and a what attention adds to it, ``norm_ratio`` is the mean of
    ||a|| / ||x||, ``cosine`` that of 1 - cos(x, x + a). In all three the lowest layers go first.
    """

    layer: int
    gate_norm: float
    norm_ratio: float
    cosine: float


class Agreement(Part):
    """How far one measure ranks the layers as Gate-Norm does.

    ``lowest`` are its own lowest layers, as many as the cut has; ``shared`` those that are also Gate-Norm's, ``spared``
    Gate-Norm's that it would keep; ``by_chance`` is how many a random ranking would share on average. ``apart`` are the
    layers, of all, whose places in the two rankings differ by more than a quarter of the number of layers.
    ``disagrees`` is true when more than half of the cut is ``spared``, or more than half of all layers are ``apart``.
    ``spearman_rho`` is None where it is not defined.
    """

    measure: Measure
    spearman_rho: float | None
    lowest: tuple[int, ...]
    shared: tuple[int, ...]
    spared: tuple[int, ...]
    by_chance: float
    apart: tuple[int, ...]
    disagrees: bool
    sentence: str


class CorrelationReport(Record):
    """What ``gatenorm correlate`` measured. ``cut`` is how many layers would go; ``lowest`` are Gate-Norm's."""

    kind: Literal["correlation"] = "correlation"
    model_name: str
    model_digest: str | None
    tower: str = ""
    text: str
    text_sha256: str
    n_tokens: int
    window_tokens: int
    cut: int
    cut_asked: bool
    """Whether the cut was asked for; else it is a quarter of the layers."""
    lowest: tuple[int, ...]
    layers: tuple[LayerMeasures, ...]
    agreements: tuple[Agreement, ...]
    warning: str | None
    sentence: str
    seconds: float
    command: str = ""
