"""Gate-Norm, the norm ratio and cosine importance over depth, one panel under another, as SVG text.

It carries its own style, follows the reader's light or dark preference, and loads nothing. What it says in colour it
says in shape too: the lowest layers of a panel are crosses, those of Gate-Norm are bands behind all panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gatenorm_export.records.correlation import CorrelationReport
from gatenorm_export.reporting.formatting import MINUS, fixed, layer_list, number
from gatenorm_export.sweeping.layout import Scale, ratio_ticks, share_ticks, text_width

_STYLE = """
.gc{--ink:#1d2329;--soft:#5b6570;--line:#dfe3e6;--mark:#0b6e67;--tint:#e3f1ef;--ground:#ffffff;
font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:12px}
@media (prefers-color-scheme:dark){@media screen{.gc{--ink:#e8ebee;--soft:#a3adb7;--line:#343c44;--mark:#4fd1c3;
--tint:#183b39;--ground:#14181c}}}
.gc-ground{fill:var(--ground)}.gc text{fill:var(--soft)}.gc .gc-title{fill:var(--ink);font-size:16px;font-weight:600}
.gc .gc-name{fill:var(--ink);font-weight:600}.gc .gc-strong{fill:var(--mark);font-weight:700}
.gc-grid{stroke:var(--line)}.gc-axis{stroke:var(--soft)}.gc-path{fill:none;stroke:var(--soft);stroke-width:1.2}
.gc-kept{fill:var(--soft);stroke:var(--ground);stroke-width:1}.gc-band{fill:var(--tint);stroke:var(--mark);
stroke-width:.6;stroke-dasharray:2 3}.gc-low{fill:none;stroke:var(--ground);stroke-width:5.5}
.gc-cross{fill:none;stroke:var(--mark);stroke-width:2.4}
"""
_WIDE, _LEFT, _RIGHT, _PANEL, _GAP, _PAD = 960, 62, 14, 128, 50, 10.0
# Two digits at 12 px need 14 px; below 18 px for a layer only every fifth number has room.
_MIN_SLOT, _EVERY_SLOT = 9.0, 18.0
_LOG_FROM = 8.0
"""Where the highest value is this many times the lowest, a linear axis would press all others onto the floor."""
_NAME = 50
"""Characters of a model's name that fit beside the title."""
_CROSS = "M-4 -4L4 4M-4 4L4 -4"


@dataclass(frozen=True)
class _Panel:
    """One row of the picture: values by layer, the layers to cross, a title and what stands beside it."""

    name: str
    values: tuple[float, ...]
    lowest: frozenset[int]
    title: str
    note: str


def correlation_svg(report: CorrelationReport) -> str:
    """Three panels over one axis of layers, with the lowest layers of each marked, as an SVG document."""
    layers = [row.layer for row in report.layers]
    width = max(_WIDE, math.ceil(_LEFT + _RIGHT + len(layers) * _MIN_SLOT))
    slot = (width - _LEFT - _RIGHT) / len(layers)
    across = {layer: _LEFT + (place + 0.5) * slot for place, layer in enumerate(layers)}
    tower = f", {report.tower}" if report.tower else ""
    room = _NAME - len(tower)
    name = report.model_name if len(report.model_name) <= room else f"…{report.model_name[1 - room :]}"
    top = 100.0
    bottom = top + 3 * _PANEL + 2 * _GAP
    parts = [
        f'<text class="gc-title" x="{_LEFT}" y="26">Gate-Norm and what attention does · {escape(name + tower)}</text>'
    ]
    parts.append(_legend(report, 52.0))
    for place, panel in enumerate(_panels(report)):
        ceiling = top + place * (_PANEL + _GAP)
        parts.append(_bands(report.lowest, across, slot, ceiling))
        parts.append(_draw(panel, across, ceiling, width))
    for layer, x in across.items():
        if slot >= _EVERY_SLOT or layer % 5 == 0:
            style = ' class="gc-strong"' if layer in report.lowest else ""
            parts.append(f'<text{style} x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{layer}</text>')
    middle = (_LEFT + width - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{bottom + 40:.1f}" text-anchor="middle">layer, from input to output</text>'
    )
    foot, end = _foot(report, bottom + 66, width)
    return _document(report, (width, math.ceil(end)), "".join([*parts, foot]))


def _panels(report: CorrelationReport) -> list[_Panel]:
    notes, lowest = {}, {}
    for found in report.agreements:
        rho = "not defined" if found.spearman_rho is None else fixed(found.spearman_rho, 2)
        verdict = " · disagrees" if found.disagrees else ""
        notes[found.measure] = f"Spearman {rho} with Gate-Norm · {len(found.shared)} of {report.cut} shared{verdict}"
        lowest[found.measure] = frozenset(found.lowest)
    rows = report.layers
    return [
        _Panel("gate-norm", tuple(row.gate_norm for row in rows), frozenset(report.lowest), "Gate-Norm score", ""),
        _Panel(
            "norm-ratio",
            tuple(row.norm_ratio for row in rows),
            lowest["norm_ratio"],
            "norm ratio, mean ‖attn(x)‖ / ‖x‖",
            notes["norm_ratio"],
        ),
        _Panel(
            "cosine",
            tuple(row.cosine for row in rows),
            lowest["cosine"],
            f"cosine importance, mean 1 {MINUS} cos(x, x + attn(x))",
            notes["cosine"],
        ),
    ]


def _bands(lowest: Sequence[int], across: dict[int, float], slot: float, ceiling: float) -> str:
    """Gate-Norm's lowest layers as bands behind one panel, neighbours in one."""
    runs: list[list[int]] = []
    for layer in sorted(lowest):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return "".join(
        f'<rect class="gc-band" data-band="{run[0]}-{run[-1]}" x="{across[run[0]] - slot / 2:.1f}" y="{ceiling:.1f}" '
        f'width="{len(run) * slot:.1f}" height="{_PANEL}"/>'
        for run in runs
    )


def _draw(panel: _Panel, across: dict[int, float], top: float, width: float) -> str:
    low, high = min(panel.values), max(panel.values)
    floor = top + _PANEL
    logarithmic = low > 0 and high / low > _LOG_FROM
    if logarithmic:
        ticks, low, high = ratio_ticks(low, high)
        scale = Scale(math.log(low), math.log(high), floor - _PAD, top + _PAD)
        places = [scale(math.log(value)) for value in panel.values]
        marks = [(scale(math.log(value)), word) for value, word in _thinned(ticks)]
    else:
        values, low, high = share_ticks(min(low, 0.0), high)
        scale = Scale(low, high, floor, top + _PAD)
        places = [scale(value) for value in panel.values]
        marks = [(scale(value), number(value)) for value in values[:: 1 if len(values) < 6 else 2]]
    parts = []
    for y, word in marks:
        parts.append(f'<line class="gc-grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{word}</text>')
    parts.append(f'<line class="gc-axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{floor:.1f}" y2="{floor:.1f}"/>')
    title = panel.title + (" (log scale)" if logarithmic else "")
    parts.append(f'<text class="gc-name" x="{_LEFT}" y="{top - 8:.1f}">{title}</text>')
    parts.append(f'<text x="{width - _RIGHT}" y="{top - 8:.1f}" text-anchor="end">{panel.note}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across.values(), places, strict=True))
    parts.append(f'<polyline class="gc-path" data-panel="{panel.name}" points="{path}"/>')
    for (layer, x), y, value in zip(across.items(), places, panel.values, strict=True):
        low_one = layer in panel.lowest
        cross = f'<path class="gc-low" d="{_CROSS}"/><path class="gc-cross" d="{_CROSS}"/>'
        sign = cross if low_one else '<circle class="gc-kept" r="3.6"/>'
        hint = f"Layer {layer}: {number(value)}" + (", among the lowest" if low_one else "")
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})" data-layer="{layer}"><title>{hint}</title>{sign}</g>')
    return "".join(parts)


def _thinned(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """At most six ticks of a logarithmic axis: those that are powers of ten, or every n-th."""
    if len(ticks) <= 6:
        return list(ticks)
    powers = [tick for tick in ticks if math.isclose(math.log10(tick[0]) % 1, 0, abs_tol=1e-9)]
    kept = powers if len(powers) > 2 else list(ticks)
    return kept[:: math.ceil(len(kept) / 6)]


def _legend(report: CorrelationReport, y: float) -> str:
    low = f"the {report.cut} lowest of a panel" if report.cut > 1 else "the lowest of a panel"
    entries = [
        (f'<path class="gc-cross" d="{_CROSS}" transform="translate(8 -4)"/>', low),
        (
            '<rect class="gc-band" x="0" y="-12" width="16" height="16"/>',
            f"Gate-Norm's lowest: {layer_list(report.lowest)}",
        ),
        ('<circle class="gc-kept" cx="8" cy="-4" r="3.6"/>', "the other layers"),
    ]
    parts, x = [], float(_LEFT)
    for sign, word in entries:
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{sign}<text x="24" y="0">{escape(word)}</text></g>')
        x += 24 + text_width(word) + 22
    return "".join(parts)


def _foot(report: CorrelationReport, top: float, width: float) -> tuple[str, float]:
    """The text it was measured on and the finding, wrapped; and the y below."""
    found = report.warning if report.warning is not None else report.sentence
    words = f"Measured on {report.n_tokens:,} tokens of {report.text}. {'Warning: ' if report.warning else ''}{found}"
    lines: list[str] = [""]
    for word in words.split():
        if text_width(f"{lines[-1]} {word}") > width - _LEFT - _RIGHT:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    text = [f'<text x="{_LEFT}" y="{top + 18 * index:.0f}">{escape(line)}</text>' for index, line in enumerate(lines)]
    return "".join(text), top + 18 * len(lines)


def _document(report: CorrelationReport, extent: tuple[int, int], body: str) -> str:
    width, height = extent
    found = " ".join(entry.sentence for entry in report.agreements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="gc" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="gc-t gc-d">'
        f'<title id="gc-t">Gate-Norm, norm ratio and cosine importance of {escape(report.model_name)}</title>'
        f'<desc id="gc-d">{escape(found)}</desc><style>{_STYLE}</style>'
        f'<rect class="gc-ground" width="{width}" height="{height}"/>{body}</svg>\n'
    )
