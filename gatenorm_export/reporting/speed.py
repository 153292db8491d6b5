"""Bars and intervals as positions in percent of a track, so that a page of any width can draw them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gatenorm_export.records import Latency, LatencyRow
from gatenorm_export.reporting.formatting import count, interval, number, times


@dataclass(frozen=True)
class Bar:
    """A labelled share of a whole, 0 to 100; None where it is no finite number."""

    label: str
    share: float | None
    text: str


@dataclass(frozen=True)
class SpeedRow:
    """One measured point as two bars, and its speed-up on an axis; positions in percent of the track.

    ``goal`` is where the roofline's prediction lies, ``predicted`` says it in words; None and empty without one.
    """

    label: str
    base: Bar
    pruned: Bar
    speedup: str
    interval: str
    low: float | None
    middle: float | None
    high: float | None
    goal: float | None = None
    predicted: str = ""


@dataclass(frozen=True)
class SpeedChart:
    """All points of one phase, in ``unit`` per second.

    ``one`` is where a speed-up of 1 lies on the axis from ``left`` to ``right``.
    """

    phase: str
    unit: str
    rows: tuple[SpeedRow, ...]
    one: float
    left: str
    right: str
    predicts: bool = False


def speed_charts(latency: Latency) -> tuple[SpeedChart, ...]:
    """Both phases on one speed-up axis, so that they can be compared; throughput bars are scaled per phase."""
    ends = [end for row in latency.rows for end in (row.speedup_low, row.speedup, row.speedup_high)]
    ends += [row.roofline.speedup for row in latency.rows if row.roofline is not None]
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
                label=_label(row),
                base=_rate("unpruned", row.base_tokens_per_s, top, latency.unit),
                pruned=_rate("pruned", row.pruned_tokens_per_s, top, latency.unit),
                speedup=times(row.speedup),
                interval=interval(row.speedup_low, row.speedup_high),
                low=position(row.speedup_low, left, right),
                middle=position(row.speedup, left, right),
                high=position(row.speedup_high, left, right),
                goal=position(row.roofline.speedup, left, right) if row.roofline is not None else None,
                predicted=f"of {times(row.roofline.speedup)} predicted" if row.roofline is not None else "",
            )
            for row in rows
        )
        one = 100 * (1 - left) / (right - left)
        name = phase.capitalize() if latency.decode_speedup is not None else "Forward pass"
        predicts = any(row.goal is not None for row in shown)
        charts.append(SpeedChart(name, latency.unit, shown, round(one, 2), times(left), times(right), predicts))
    return tuple(charts)


def _label(row: LatencyRow) -> str:
    if row.batch is not None:
        return f"batch of {count(row.batch)}"
    return f"{count(row.sequence)} tokens" if row.phase == "prefill" else f"after {count(row.sequence)} tokens"


def _rate(label: str, rate: float, top: float, unit: str) -> Bar:
    return Bar(label, position(rate, 0, top), f"{number(rate)} {unit}/s")


def position(value: float, left: float, right: float) -> float | None:
    """Where ``value`` lies between ``left`` and ``right``, in percent, kept within the track."""
    if not math.isfinite(value):
        return None
    return round(min(max(100 * (value - left) / (right - left), 0.0), 100.0), 2)
