"""Speed-up over removed layers as one picture: prefill and decode side by side, a line for each length, as SVG text.

Measured points have their shape and 95 % bar, what the roofline predicts is dashed; every point says in words what
it is when it is pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.bench_tables import Cell
from gatenorm_export.records.bench import BenchReport, BenchRow, Phase
from gatenorm_export.sweeping.layout import Scale, share_ticks, text_width
from gatenorm_export.sweeping.looks import Look, legend, style

_WIDTH, _LEFT, _GAP, _RIGHT, _HEIGHT = 1040, 58, 56, 20, 320
_PANEL = (_WIDTH - _LEFT - _GAP - _RIGHT) / 2
_PAD, _LINE, _ASIDE = 24.0, 18, 7.0
_EXTRA = ".gs-predicted{fill:none;stroke-width:1.2;stroke-dasharray:5 4;opacity:.8}.gs-one{stroke:var(--soft)}"
"""Beside the style of the sweep's picture, which this one shares."""


def bench_svg(cells: Sequence[Cell], title: str) -> str:
    """Two panels over one axis of removed layers, every measured row a point, as an SVG document."""
    reports = [(cell.drop or 0, cell.report) for cell in cells if cell.report is not None]
    series = list(dict.fromkeys((row.batch, row.sequence) for _, report in reports for row in report.rows))
    names = tuple(_name(batch, sequence, series) for batch, sequence in series)
    look = Look(names, names)
    legend, ceiling = _legend(look, names, 52.0)
    floor = ceiling + 22 + _HEIGHT
    drops = sorted({drop for drop, _ in reports})
    phases: tuple[Phase, ...] = ("prefill", "decode")
    values = [value for _, report in reports for row in report.rows for value in _values(row)]
    ticks, low, high = share_ticks(min([*values, 1.0]), max([*values, 1.02]))
    y = Scale(low, high, floor - _PAD, ceiling + 22 + _PAD)
    parts = [f'<text class="gs-title" x="{_LEFT}" y="26">Speed-up over removed attention · {escape(title)}</text>']
    parts.append(legend)
    for place, phase in enumerate(phases):
        left = _LEFT + place * (_PANEL + _GAP)
        x = Scale(min(drops), max(max(drops), min(drops) + 1), left + _PAD, left + _PANEL - _PAD)
        parts.append(_frame(phase, left, (ceiling + 22, floor), drops, ticks, x, y))
        for index, (name, key) in enumerate(zip(names, series, strict=True)):
            # Beside each other, so that no bar hides another.
            aside = _ASIDE * (index - (len(series) - 1) / 2)
            across = Scale(x.low, x.high, x.start + aside, x.end + aside)
            rows = [
                (drop, row)
                for drop, report in reports
                for row in report.rows
                if (row.phase, row.batch, row.sequence) == (phase, *key)
            ]
            parts.append(_series(sorted(rows, key=lambda entry: entry[0]), name, look, across, y))
        if not any(row.phase == phase for _, report in reports for row in report.rows):
            middle = left + _PANEL / 2
            parts.append(
                f'<text x="{middle:.1f}" y="{(ceiling + floor) / 2:.0f}" text-anchor="middle">not measured</text>'
            )
    foot, bottom = _foot(reports[0][1], floor + 66.0)
    return _document(title, (_WIDTH, math.ceil(bottom)), "".join([*parts, foot]), reports[-1][1].verdict)


def _values(row: BenchRow) -> list[float]:
    predicted = [row.roofline.speedup] if row.roofline is not None else []
    return [row.speedup_low, row.speedup_high, *predicted]


def _name(batch: int, sequence: int, series: Sequence[tuple[int, int]]) -> str:
    many = len({batch for batch, _ in series}) > 1
    return f"{sequence} tokens, batch {batch}" if many else f"{sequence} tokens"


def _frame(
    phase: str,
    left: float,
    extent: tuple[float, float],
    drops: Sequence[int],
    ticks: Sequence[float],
    x: Scale,
    y: Scale,
) -> str:
    ceiling, floor = extent
    right = left + _PANEL
    parts = [f'<text class="gs-strong" x="{left:.1f}" y="{ceiling - 8:.0f}">{phase}</text>']
    for tick in ticks:
        kind = "gs-one" if math.isclose(tick, 1.0) else "gs-grid"
        parts.append(f'<line class="{kind}" x1="{left:.1f}" x2="{right:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}×</text>')
    parts.append(f'<line class="gs-axis" x1="{left:.1f}" x2="{right:.1f}" y1="{floor}" y2="{floor}"/>')
    for drop in drops:
        parts.append(f'<text x="{x(drop):.1f}" y="{floor + 18}" text-anchor="middle">{drop}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{floor + 40}" text-anchor="middle">removed attention sublayers</text>')
    return "".join(parts)


def _series(rows: Sequence[tuple[int, BenchRow]], name: str, look: Look, x: Scale, y: Scale) -> str:
    if not rows:
        return ""
    colour = look.colour(name)
    path = " ".join(f"{x(drop):.1f},{y(row.speedup):.1f}" for drop, row in rows)
    parts = [f'<polyline class="gs-series" stroke="{colour}" points="{path}"/>']
    predicted = [(drop, row.roofline.speedup) for drop, row in rows if row.roofline is not None]
    if len(predicted) > 1:
        path = " ".join(f"{x(drop):.1f},{y(value):.1f}" for drop, value in predicted)
        parts.append(f'<polyline class="gs-predicted" stroke="{colour}" points="{path}"/>')
    for drop, row in rows:
        low, high = y(row.speedup_low), y(row.speedup_high)
        parts.append(
            f'<line class="gs-bar" stroke="{colour}" x1="{x(drop):.1f}" x2="{x(drop):.1f}" y1="{low:.1f}" '
            f'y2="{high:.1f}"/>'
        )
        hint = f"{row.name}, {drop} removed: {row.speedup:.3f} ({row.speedup_low:.3f} to {row.speedup_high:.3f})"
        if row.roofline is not None:
            hint += f", predicted {row.roofline.speedup:.3f}"
        sign = look.marker(name, colour)
        parts.append(
            f'<g data-row="{escape(row.name)}" data-drop="{drop}" transform="translate({x(drop):.1f} '
            f'{y(row.speedup):.1f})"><title>{escape(hint)}</title>{sign}</g>'
        )
    return "".join(parts)


def _legend(look: Look, names: Sequence[str], top: float) -> tuple[str, float]:
    """A marker for each length, and the two kinds of line, wrapped; and the y below them."""
    entries = [(f'<g transform="translate(13 -4)">{look.marker(name, look.colour(name))}</g>', name) for name in names]
    entries.append(
        ('<line class="gs-bar" stroke="var(--soft)" x1="13" x2="13" y1="-11" y2="3"/>', "measured, with 95 % interval")
    )
    entries.append(
        ('<line class="gs-predicted" stroke="var(--soft)" x1="0" x2="26" y1="-4" y2="-4"/>', "roofline predicts")
    )
    return legend(entries, left=_LEFT, right=_WIDTH - _RIGHT, top=top, line=_LINE, gap=18)


def _foot(report: BenchReport, top: float) -> tuple[str, float]:
    """What it was measured on, wrapped; and the y below."""
    device = report.device
    words = f"{device.runtime} on {device.device}" + (f", driver {device.driver}" if device.driver else "")
    words += "; base and pruned in turns." if report.alternating else "; base and pruned one after the other."
    lines = [""]
    for word in words.split():
        if text_width(f"{lines[-1]} {word}") > _WIDTH - _LEFT - _RIGHT:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    text = [
        f'<text x="{_LEFT}" y="{top + _LINE * index:.0f}">{escape(line)}</text>' for index, line in enumerate(lines)
    ]
    return "".join(text), top + _LINE * len(lines)


def _document(title: str, extent: tuple[int, int], body: str, sentence: str) -> str:
    width, height = extent
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="gs" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="gs-t gs-d">'
        f'<title id="gs-t">Speed-up over removed attention of {escape(title)}</title>'
        f'<desc id="gs-d">{escape(sentence)}</desc><style>{style()}{_EXTRA}</style>'
        f'<rect class="gs-ground" width="{width}" height="{height}"/>{body}</svg>\n'
    )
