"""Bar charts of the scores as SVG text: one bar per layer, standing for wide pages, lying for narrow ones.

Both carry their own style, follow the reader's light or dark preference, load nothing, and say in shape and words
what they say in colour: a dropped layer is hatched and crossed, a protected one has a diamond; of several cuts each has
a hatch of its own, and its number stands on the bar. The standing one also shows the trend: the falling curve nearest
to the scores, which runs along the tops of bars that never rise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from gatenorm_export.records import DepthTrend, LayerScore, LayerScores
from gatenorm_export.reporting.formatting import fixed, layer_list, number
from gatenorm_export.scoring.trend import nearest_fall

_STYLE = """
.gn{--ink:#1d2329;--soft:#5b6570;--line:#dfe3e6;--kept:#9fabb6;--mark:#0b6e67;--tint:#d5ebe8;--ground:#ffffff;
font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:12px}
@media (prefers-color-scheme:dark){@media screen{.gn{--ink:#e8ebee;--soft:#a3adb7;--line:#343c44;--kept:#6d7985;
--mark:#4fd1c3;--tint:#183b39;--ground:#14181c}}}
.gn-ground{fill:var(--ground)}.gn text{fill:var(--soft)}.gn .gn-title{fill:var(--ink);font-size:16px;font-weight:600}
.gn .gn-strong{fill:var(--mark);font-weight:700}.gn-grid{stroke:var(--line)}.gn-axis{stroke:var(--soft)}
.gn-kept{fill:var(--kept)}.gn-drop{stroke:var(--mark);stroke-width:1.2}.gn-tint{fill:var(--tint)}
.gn-hatch{stroke:var(--mark);stroke-width:2.4}.gn-odd{fill:none;stroke:var(--soft);stroke-dasharray:3 2}
.gn .gn-sign{paint-order:stroke;stroke:var(--ground);stroke-width:3px}
.gn-fall{fill:none;stroke:var(--ink);stroke-width:1.6;stroke-dasharray:6 3}
"""

_WIDE = 960
_LEFT, _RIGHT, _HEIGHT = 56, 8, 240
# Two digits at 10 px need 11 px lying down; below 15 px per bar they are turned so that neighbours never touch.
_MIN_SLOT, _UPRIGHT_SLOT = 11.0, 15.0
_NARROW, _ROW = 340, 18
_DIGIT = 7.0
"""Width of a bold digit at 12 px, the cross aside, which fits every slot."""

_HATCHES = ((45, 6), (135, 9), (0, 6), (90, 9))
"""Angle and distance of the lines, cut by cut; with more cuts they come round again."""

_CUTS_SHOWN = 5
"""More do not fit into the legend's line; the numbers on the bars still tell them apart."""


@dataclass(frozen=True)
class _Marks:
    """The layers to mark, those that go with the word for it, and the ceiling of the finite scores."""

    drop: Mapping[int, str]
    protect: frozenset[int]
    top: float

    def fraction(self, score: float) -> float | None:
        """Bar length from 0 to 1; None where the score is no finite number and the bar is drawn as an empty frame."""
        return max(score, 0.0) / self.top if math.isfinite(score) else None

    def height(self, score: float) -> float:
        """Height of a standing bar; one without a number has the full one."""
        part = self.fraction(score)
        return _HEIGHT if part is None else max(part * _HEIGHT, 1.0)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the cuts, the smallest cut first."""
        return tuple(dict.fromkeys(self.drop.values()))

    def word(self, layer: int) -> str:
        words = [self.drop.get(layer, ""), "protected" if layer in self.protect else ""]
        return ", ".join(word for word in words if word)

    def sign(self, word: str) -> str:
        """What stands on the bars of a cut: a cross, or of several cuts the number."""
        return "✕" if len(self.words) == 1 else word.split()[-1]

    def hatch(self, word: str, chart: str) -> str:
        """The name of a cut's hatch in the document."""
        place = self.words.index(word) % len(_HATCHES)
        return f"gn-hatch-{chart}-{place}" if place else f"gn-hatch-{chart}"


def scores_svg(scores: LayerScores, drop: tuple[int, ...] | Mapping[int, str], *, protect: tuple[int, ...] = ()) -> str:
    """A standing bar per layer with a title and a legend, as an SVG document of its own.

    Args:
        scores: the scores of one checkpoint; not-finite ones get an empty dashed frame.
        drop: layers to mark as dropped, or where nothing is dropped yet each with the word for it, such as ``drop 8``
            for the smallest cut that takes it, the layers of the smallest cut first.
        protect: layers to mark as protected.
    """
    return standing_bars(scores, drop, protect, titled=True)


def standing_bars(
    scores: LayerScores, drop: tuple[int, ...] | Mapping[int, str], protect: tuple[int, ...], *, titled: bool
) -> str:
    """The chart for wide pages; ``titled`` adds the model's name and the trend in words inside the picture."""
    marks = _marks(scores, drop, protect)
    n = max(len(scores.layers), 1)
    width = max(_WIDE, math.ceil(_LEFT + _RIGHT + n * _MIN_SLOT))
    slot = (width - _LEFT - _RIGHT) / n
    ceiling = 66 if titled else 40
    floor = ceiling + _HEIGHT
    parts = [_grid(marks.top, ceiling, width)]
    for place, row in enumerate(scores.layers):
        parts.append(_standing_bar(row, marks, (_LEFT + place * slot, slot), floor))
        parts.append(_foot(row.layer, marks, (_LEFT + (place + 0.5) * slot, slot), floor))
    fall = _fall(scores.layers, marks.top, slot, floor)
    parts.append(fall)
    # Behind the curve in the file, and so in front of it in the picture.
    for place, row in enumerate(scores.layers):
        parts.append(_sign(row, marks, (_LEFT + place * slot, slot), floor))
    parts.append(f'<line class="gn-axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (_LEFT + width - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{floor + 50}" text-anchor="middle">layer, from input to output</text>')
    if titled:
        name = scores.model.name if len(scores.model.name) <= 60 else scores.model.name[:59] + "…"
        parts.append(f'<text class="gn-title" x="{_LEFT}" y="24">Gate-Norm score per layer · {escape(name)}</text>')
        parts.append(f'<text x="{middle:.1f}" y="{floor + 72}" {_MIDDLE}>{escape(_trend_words(scores.trend))}</text>')
    parts.append(_legend(ceiling - 22, marks, fall=bool(fall)))
    return _document(scores, marks, "standing", (width, floor + (82 if titled else 60)), "".join(parts))


def _fall(rows: Sequence[LayerScore], top: float, slot: float, floor: float) -> str:
    """The falling curve nearest to the scores, a level piece over each bar; nothing where a score is no number."""
    if len(rows) < 2 or not all(math.isfinite(row.score) for row in rows):
        return ""
    points = []
    for place, value in enumerate(nearest_fall([row.score for row in rows])):
        y = floor - value / top * _HEIGHT
        points += [f"{_LEFT + place * slot:.1f},{y:.1f}", f"{_LEFT + (place + 1) * slot:.1f},{y:.1f}"]
    return f'<polyline class="gn-fall" points="{" ".join(points)}"/>'


def _trend_words(trend: DepthTrend) -> str:
    """The figures of the trend in one line."""
    if trend.spearman_rho is None:
        return trend.sentence
    words = [f"Spearman {fixed(trend.spearman_rho, 2)} of score and depth"]
    if trend.n_steps:
        words.append(f"{trend.falling_steps} of {trend.n_steps} steps fall")
    if trend.longest_fall and trend.longest_fall_from is not None:
        last = trend.longest_fall_from + trend.longest_fall - 1
        words.append(f"longest unbroken fall: layers {trend.longest_fall_from} to {last}")
    return " · ".join(words)


def lying_bars(scores: LayerScores, drop: tuple[int, ...], protect: tuple[int, ...]) -> str:
    """The chart for narrow pages: a row per layer, so that 80 layers need no more width than 8."""
    marks = _marks(scores, drop, protect)
    longest = 160.0
    parts = []
    for place, row in enumerate(scores.layers):
        y = place * _ROW + 4
        part = marks.fraction(row.score)
        length = longest if part is None else max(part * longest, 1.0)
        parts.append(f'<text x="22" y="{y + 11}" text-anchor="end">{row.layer}</text>')
        parts.append(
            f'<rect {_paint(row.layer, marks, part, "lying")} x="30" y="{y}" width="{length:.1f}" height="{_ROW - 4}"/>'
        )
        word = marks.word(row.layer)
        sign = "✕ " if row.layer in marks.drop else "◆ " if word else ""
        mark = f'<tspan class="gn-strong" dx="6">{sign}{word}</tspan>' if word else ""
        parts.append(f'<text x="{30 + length + 5:.1f}" y="{y + 11}">{_short(row.score)}{mark}</text>')
    return _document(scores, marks, "lying", (_NARROW, len(scores.layers) * _ROW + 8), "".join(parts))


def _marks(scores: LayerScores, drop: Collection[int] | Mapping[int, str], protect: tuple[int, ...]) -> _Marks:
    finite = [row.score for row in scores.layers if math.isfinite(row.score)]
    words = drop if isinstance(drop, Mapping) else dict.fromkeys(drop, "dropped")
    return _Marks(words, frozenset(protect), max([*finite, 0.0]) or 1.0)


def _paint(layer: int, marks: _Marks, fraction: float | None, chart: str) -> str:
    word = f' data-layer="{layer}" data-mark="{marks.word(layer)}"' if marks.word(layer) else f' data-layer="{layer}"'
    if layer in marks.drop:
        return f'class="gn-drop" fill="url(#{marks.hatch(marks.drop[layer], chart)})"{word}'
    return f'class="{"gn-odd" if fraction is None else "gn-kept"}"{word}'


def _standing_bar(row: LayerScore, marks: _Marks, across: tuple[float, float], floor: float) -> str:
    left, slot = across
    part, height = marks.fraction(row.score), marks.height(row.score)
    width = slot * 0.72
    hint = f"Layer {row.layer}: {number(row.score)}" + (f", {marks.word(row.layer)}" if marks.word(row.layer) else "")
    return (
        f'<rect {_paint(row.layer, marks, part, "standing")} x="{left + (slot - width) / 2:.1f}" '
        f'y="{floor - height:.1f}" width="{width:.1f}" height="{height:.1f}"><title>{escape(hint)}</title></rect>'
    )


def _sign(row: LayerScore, marks: _Marks, across: tuple[float, float], floor: float) -> str:
    """What stands on the bar of a layer that goes; a number that is wider than the bar's slot is turned."""
    if row.layer not in marks.drop:
        return ""
    left, slot = across
    x, y = left + slot / 2, floor - marks.height(row.score) - 5
    sign = marks.sign(marks.drop[row.layer])
    place = f'x="{x:.1f}" y="{y:.1f}" {_MIDDLE}'
    if len(sign) * _DIGIT > slot:
        place = f'transform="translate({x + 4:.1f} {y + 2:.1f}) rotate(-90)"'
    return f'<text class="gn-strong gn-sign" {place}>{sign}</text>'


_MIDDLE = 'text-anchor="middle"'


def _foot(layer: int, marks: _Marks, across: tuple[float, float], floor: float) -> str:
    """The layer's number below the axis: each one where there is room, else every fifth and every marked one."""
    middle, slot = across
    shown = "◆ " if layer in marks.protect else ""
    style = ' class="gn-strong"' if layer in marks.drop else ""
    if slot >= _UPRIGHT_SLOT:
        diamond = f'<text x="{middle:.1f}" y="{floor + 31}" {_MIDDLE}>◆</text>' if shown else ""
        return f'<text{style} x="{middle:.1f}" y="{floor + 17}" {_MIDDLE}>{layer}</text>{diamond}'
    if layer % 5 and not marks.word(layer):
        return ""
    turned = f'transform="translate({middle + 3.5:.1f} {floor + 6}) rotate(-90)" text-anchor="end" font-size="10"'
    return f"<text{style} {turned}>{shown}{layer}</text>"


def _grid(top: float, ceiling: float, width: float) -> str:
    """Horizontal lines at round scores."""
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    parts = []
    for index in range(math.floor(top / step * (1 + 1e-9)) + 1):
        y = ceiling + _HEIGHT * (1 - index * step / top)
        parts.append(f'<line class="gn-grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(index * step)}</text>')
    return "".join(parts)


def _legend(y: float, marks: _Marks, *, fall: bool) -> str:
    entries = [('class="gn-kept"', "kept")]
    shown = marks.words if len(marks.words) <= _CUTS_SHOWN else ()
    for place, word in enumerate(shown):
        # A cut takes the layers of the smaller ones, too.
        text = f"{marks.sign(word)} {word}" if len(shown) == 1 else word if place == 0 else f"{word}, too"
        entries.append((f'class="gn-drop" fill="url(#{marks.hatch(word, "standing")})"', text))
    parts, x = [], float(_LEFT)
    for paint, word in entries:
        parts.append(
            f'<rect {paint} x="{x}" y="{y - 10}" width="22" height="12"/><text x="{x + 29}" y="{y}">{word}</text>'
        )
        x += 90 if len(word) < 10 else 120
    if len(shown) < len(marks.words):
        parts.append(f'<text class="gn-strong" x="{x}" y="{y}">on a bar: the smallest cut that takes it</text>')
        x += 270
    if marks.protect:
        parts.append(f'<text x="{x + 20}" y="{y}">◆ protected</text>')
        x += 110
    if fall:
        parts.append(f'<line class="gn-fall" x1="{x + 20}" x2="{x + 46}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text x="{x + 53}" y="{y}">the nearest curve that only falls</text>')
    return "".join(parts)


def _short(score: float) -> str:
    """A score in at most seven characters, so that it fits beside the longest bar."""
    if math.isnan(score):
        return "nan"
    return number(score) if math.isinf(score) or 1e-3 <= abs(score) < 1e6 or score == 0 else f"{score:.1e}"


def _document(scores: LayerScores, marks: _Marks, chart: str, extent: tuple[int, int], body: str) -> str:
    width, height = extent
    layers = {word: [layer for layer, its in sorted(marks.drop.items()) if its == word] for word in marks.words}
    listed = [f"{word.capitalize()}: {layer_list(found)}." for word, found in (layers or {"dropped": []}).items()]
    dropped = f"{' '.join(listed)} Protected: {layer_list(sorted(marks.protect))}."
    hatches = {marks.hatch(word, chart): _HATCHES[place % len(_HATCHES)] for place, word in enumerate(marks.words)}
    hatch = "".join(
        f'<pattern id="{name}" width="{step}" height="{step}" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate({angle})"><rect class="gn-tint" width="{step}" height="{step}"/>'
        f'<line class="gn-hatch" x1="0" x2="0" y1="0" y2="{step}"/></pattern>'
        for name, (angle, step) in hatches.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="gn gn-{chart}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-labelledby="gn-t-{chart} gn-d-{chart}">'
        f'<title id="gn-t-{chart}">Gate-Norm score of each layer of {escape(scores.model.name)}</title>'
        f'<desc id="gn-d-{chart}">{escape(scores.trend.sentence)} {dropped}</desc>'
        f"<style>{_STYLE}</style><defs>{hatch}</defs>"
        f'<rect class="gn-ground" width="{width}" height="{height}"/>{body}</svg>\n'
    )
