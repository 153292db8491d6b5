"""The sweep as one picture: perplexity over decode speed-up and over KV cache, with both Pareto fronts, as SVG text.

It carries its own style, follows the reader's light or dark preference, and loads nothing. A ranking has a colour and
a dash, a repair a shape; every point says in words what it is when it is pointed at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from gatenorm_export.records import SweepCell, SweepFigures, SweepReport
from gatenorm_export.reporting.formatting import layer_list
from gatenorm_export.sweeping.front import pareto_front, saving_of, speed_of
from gatenorm_export.sweeping.layout import Box, Scale, place_labels, ratio_ticks, share_ticks, text_width
from gatenorm_export.sweeping.looks import Look, legend, style

_WIDTH, _LEFT, _GAP, _RIGHT, _HEIGHT = 1040, 62, 44, 20, 340
_PANEL = (_WIDTH - _LEFT - _GAP - _RIGHT) / 2
_PAD = 16.0
"""Between a panel's frame and its outermost points, so that markers and labels stay inside."""
_LINE = 18


def sweep_svg(report: SweepReport) -> str:
    """Two panels over one axis of perplexity ratio (logarithmic), every measured cell in each, as an SVG document.

    Points on a front are ringed, joined, and labelled with the number of removed layers. Cells without figures are
    named below.
    """
    cells = report.cells
    look = Look(*(tuple(dict.fromkeys(names)) for names in ([c.rank for c in cells], [c.repair for c in cells])))
    ratios = [cell.figures.ppl_ratio for cell in cells if cell.figures is not None]
    legend, ceiling = _legend(look, 52.0)
    floor = ceiling + _HEIGHT
    ticks, low, high = ratio_ticks(min([*ratios, 1.0]), max([*ratios, 1.02]))
    y = Scale(math.log(low), math.log(high), floor - _PAD, ceiling + _PAD)
    panels = [
        _Panel("speed", "decode speed-up, times", speed_of, _LEFT),
        _Panel("cache", "KV cache that is left, percent", saving_of, _LEFT + _PANEL + _GAP),
    ]
    parts = [
        f'<text class="gs-title" x="{_LEFT}" y="26">Perplexity against speed and cache · '
        f"{escape(_shortened(report.model_name, 60))}</text>",
        legend,
        f'<text x="18" y="{(ceiling + floor) / 2:.0f}" text-anchor="middle" transform="rotate(-90 18 '
        f'{(ceiling + floor) / 2:.0f})">perplexity, pruned over unpruned (log scale)</text>',
    ]
    for panel in panels:
        for tick, word in ticks:
            at = y(math.log(tick))
            parts.append(
                f'<line class="gs-grid" x1="{panel.left:.1f}" x2="{panel.left + _PANEL:.1f}" '
                f'y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            if panel.left == _LEFT:
                parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{word}</text>')
        parts.append(_panel(panel, report, look, y, (ceiling, floor)))
    foot, bottom = _foot(report, floor + 66.0)
    parts.append(foot)
    return _document(report, (_WIDTH, math.ceil(bottom)), "".join(parts))


@dataclass(frozen=True)
class _Panel:
    """One of the two: what lies along it, as a gain, and where it stands."""

    name: str
    title: str
    gain: Callable[[SweepFigures], float | None]
    left: float


@dataclass(frozen=True)
class _Point:
    cell: SweepCell
    figures: SweepFigures
    x: float
    y: float

    @property
    def place(self) -> tuple[float, float]:
        return round(self.x, 1), round(self.y, 1)


def _panel(panel: _Panel, report: SweepReport, look: Look, y: Scale, extent: tuple[float, float]) -> str:
    ceiling, floor = extent
    right = panel.left + _PANEL
    measured = [(cell, cell.figures, panel.gain(cell.figures)) for cell in report.cells if cell.figures is not None]
    gains = [gain for _, _, gain in measured if gain is not None]
    middle = (panel.left + right) / 2
    parts = [
        f'<line class="gs-axis" x1="{panel.left:.1f}" x2="{right:.1f}" y1="{floor}" y2="{floor}"/>',
        f'<text x="{middle:.1f}" y="{floor + 40}" text-anchor="middle">{panel.title}</text>',
    ]
    if not gains:
        word = "latency was not measured" if panel.name == "speed" else "the graph has no cache"
        return "".join(
            [*parts, f'<text x="{middle:.1f}" y="{(ceiling + floor) / 2:.0f}" text-anchor="middle">{word}</text>']
        )
    edges = [edge for _, figures, _ in measured for edge in _interval(figures)] if panel.name == "speed" else [0.0]
    ticks, low, high = share_ticks(min([*gains, *edges]), max([*gains, *edges]))
    x = Scale(low, high, panel.left + _PAD, right - _PAD)
    for tick in ticks:
        word = f"{tick:g}" if panel.name == "speed" else f"{100 * (1 - tick):g}"
        parts.append(f'<line class="gs-grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{ceiling}" y2="{floor}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{floor + 18}" text-anchor="middle">{word}</text>')
    points = [
        _Point(cell, figures, x(gain), y(math.log(figures.ppl_ratio)))
        for cell, figures, gain in measured
        if gain is not None
    ]
    parts.extend(_series(points, look))
    if panel.name == "speed":
        for point in points:
            low_edge, high_edge = _interval(point.figures)
            parts.append(
                f'<line class="gs-bar" stroke="{look.colour(point.cell.rank)}" x1="{x(low_edge):.1f}" '
                f'x2="{x(high_edge):.1f}" y1="{point.y:.1f}" y2="{point.y:.1f}"/>'
            )
    front = {cell.name for cell, _, _ in pareto_front(report.cells, panel.gain)}
    chosen = sorted((point for point in points if point.cell.name in front), key=lambda point: (point.x, -point.y))
    path = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in chosen)
    parts.append(f'<polyline class="gs-front" data-front="{panel.name}" points="{path}"/>')
    ringed: set[tuple[float, float]] = set()
    for point, size in _sized(points):
        # The first of those at one place is the largest: its ring is around all of them.
        ring = point.cell.name in front and point.place not in ringed
        ringed.update([point.place] if ring else [])
        parts.append(_marker(panel, point, look, size, ring=ring))
    parts.extend(_labels(points, chosen, Box(panel.left + 2, ceiling + 2, right - 2, floor - 2)))
    return "".join(parts)


def _interval(figures: SweepFigures) -> tuple[float, ...]:
    latency = figures.latency
    return latency.main[2:] if latency is not None else ()


def _series(points: Sequence[_Point], look: Look) -> list[str]:
    """A thin line through the cells of one ranking and repair, in the order of their numbers of layers."""
    lines = []
    for rank in look.ranks:
        for repair in look.repairs:
            row = [point for point in points if (point.cell.rank, point.cell.repair) == (rank, repair)]
            row.sort(key=lambda point: point.cell.drop)
            path = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in row)
            lines.append(
                f'<polyline class="gs-series" stroke="{look.colour(rank)}"{look.dash(rank)} points="{path}"/>'
                if len(row) > 1
                else ""
            )
    return lines


def _sized(points: Sequence[_Point]) -> list[tuple[_Point, float]]:
    """Cells with one place, such as those that remove the same layers, as markers within each other, all to be seen."""
    stacks: dict[tuple[float, float], list[str]] = {}
    for point in points:
        ranks = stacks.setdefault(point.place, [])
        if point.cell.rank not in ranks:
            ranks.append(point.cell.rank)
    sized = []
    for point in points:
        ranks = stacks[point.place]
        inside = len(ranks) - 1 - ranks.index(point.cell.rank)
        sized.append((point, 1.0 + 1.3 * inside / max(len(ranks) - 1, 1)))
    return sorted(sized, key=lambda entry: -entry[1])


def _marker(panel: _Panel, point: _Point, look: Look, size: float, *, ring: bool) -> str:
    cell, figures = point.cell, point.figures
    speed = speed_of(figures)
    hint = (
        f"{cell.rank}, repair {cell.repair}, {cell.drop} removed ({layer_list(cell.layers)}): perplexity "
        f"x {figures.ppl_ratio:.3f}, KL {figures.kl_nats:.4f} nats"
        + (f", decode x {speed:.3f}" if speed is not None else "")
        + (f", {figures.kv_share:.1%} of the KV cache" if figures.kv_share is not None else "")
    )
    circle = f'<circle class="gs-ring" r="{2 + 6 * size:.1f}"/>' if ring else ""
    sign = look.marker(cell.repair, look.colour(cell.rank), size)
    return (
        f'<g data-panel="{panel.name}" data-cell="{escape(cell.name)}" transform="translate({point.x:.1f} '
        f'{point.y:.1f})"><title>{escape(hint)}</title>{circle}{sign}</g>'
    )


def _labels(points: Sequence[_Point], front: Sequence[_Point], frame: Box) -> list[str]:
    """The number of removed layers beside each place on the front, clear of markers and of each other."""
    wanted = {point.place: str(point.cell.drop) for point in front}
    taken = [Box.around(point.x, point.y, 8.0 * size) for point, size in _sized(points)]
    for start, end in itertools.pairwise(front):
        n = math.ceil(math.hypot(end.x - start.x, end.y - start.y) / 6) + 1
        steps = [step / n for step in range(1, n)]
        taken += [Box.around(start.x + t * (end.x - start.x), start.y + t * (end.y - start.y), 2.0) for t in steps]
    parts = []
    for label in place_labels(wanted, taken, frame):
        if label.lead:
            x, y = label.box.near(label.x, label.y)
            parts.append(f'<line class="gs-lead" x1="{label.x}" y1="{label.y}" x2="{x:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="gs-strong" x="{label.box.left:.1f}" y="{label.box.bottom - 3:.1f}">{label.word}</text>'
        )
    return parts


def _legend(look: Look, top: float) -> tuple[str, float]:
    """The rankings, the repairs and the signs, wrapped; and the y below them."""
    entries: list[tuple[str, str]] = []
    for rank in look.ranks:
        line = f'stroke="{look.colour(rank)}" stroke-width="3"{look.dash(rank)}'
        entries.append((f'<line {line} x1="0" x2="26" y1="-4" y2="-4"/>', rank))
    for repair in look.repairs:
        entries.append(
            (f'<g transform="translate(13 -4)">{look.marker(repair, "var(--soft)")}</g>', f"repair {repair}")
        )
    entries.append(
        (
            '<line class="gs-front" x1="0" x2="26" y1="-4" y2="-4"/><circle class="gs-ring" cx="13" cy="-4" r="7"/>',
            "Pareto front, with the number of removed layers",
        )
    )
    return legend(entries, left=_LEFT, right=_WIDTH - _RIGHT, top=top, line=_LINE, gap=22)


def _foot(report: SweepReport, top: float) -> tuple[str, float]:
    """The text it was measured on, and the cells without figures; and the y below."""
    lines = [
        f"Judged on {report.n_text_tokens:,} tokens of {report.text}. Markers within each other are one measurement: "
        "rankings that choose the same layers."
    ]
    missing = [cell.name for cell in report.cells if cell.figures is None]
    if missing:
        line = "Not measured (reasons in sweep.json):"
        for name in missing:
            if text_width(f"{line} {name},") > _WIDTH - _LEFT - _RIGHT:
                lines.append(line)
                line = ""
            line = f"{line} {name},".strip()
        lines.append(line.rstrip(","))
    text = [
        f'<text x="{_LEFT}" y="{top + index * _LINE:.0f}">{escape(line)}</text>' for index, line in enumerate(lines)
    ]
    return "".join(text), top + len(lines) * _LINE


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _document(report: SweepReport, extent: tuple[int, int], body: str) -> str:
    width, height = extent
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="gs" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="gs-t gs-d">'
        f'<title id="gs-t">Perplexity against decode speed-up and KV cache of {escape(report.model_name)}</title>'
        f'<desc id="gs-d">{escape(report.sentence)}</desc><style>{style()}</style>'
        f'<rect class="gs-ground" width="{width}" height="{height}"/>{body}</svg>\n'
    )
