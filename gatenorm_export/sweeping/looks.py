"""How rankings and repairs look in the picture of a sweep: colours, dashes, shapes, and its style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gatenorm_export.sweeping.layout import text_width

_LIGHT = ("#0b6e67", "#c2560c", "#4355c9", "#a8246f", "#7a6a00", "#2f7fb8", "#8a3b3b", "#59636d")
_DARK = ("#4fd1c3", "#f2a065", "#9aa9ff", "#f08cc4", "#d9c84a", "#7cc1f0", "#e59c9c", "#a3adb7")
_DASHES = ("", "7 3", "2 3", "8 3 2 3", "12 4", "4 2", "1 4", "10 3 3 3")
_SHAPES = (
    "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0 -9.2 0z",
    "M-4.2 -4.2h8.4v8.4h-8.4z",
    "M0 -5.6L5.4 4.2H-5.4z",
    "M0 -6L6 0L0 6L-6 0z",
    "M0 5.6L5.4 -4.2H-5.4z",
    "M-5 -2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    "M0 -6L1.8 -1.9L5.7 -1.9L2.6 1L3.7 5.2L0 2.8L-3.7 5.2L-2.6 1L-5.7 -1.9L-1.8 -1.9z",
)
_STYLE = """
.gs{--ink:#1d2329;--soft:#5b6570;--line:#dfe3e6;--ground:#ffffff;LIGHT
font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:12px}
@media (prefers-color-scheme:dark){@media screen{.gs{--ink:#e8ebee;--soft:#a3adb7;--line:#343c44;
--ground:#14181c;DARK}}}
.gs-ground{fill:var(--ground)}.gs text{fill:var(--soft)}.gs .gs-title{fill:var(--ink);font-size:16px;font-weight:600}
.gs .gs-strong{fill:var(--ink);font-weight:600}.gs-grid{stroke:var(--line)}.gs-axis{stroke:var(--soft)}
.gs-series{fill:none;stroke-width:1.1;opacity:.45}.gs-bar{stroke-width:1;opacity:.55}
.gs-front{fill:none;stroke:var(--ink);stroke-width:1.6}.gs-ring{fill:none;stroke:var(--ink);stroke-width:1.3}
.gs-lead{stroke:var(--soft);stroke-width:.8}.gs-key{fill:var(--soft)}
"""


@dataclass(frozen=True)
class Look:
    """Which colour a ranking has and which shape a repair, by their order in the sweep."""

    ranks: tuple[str, ...]
    repairs: tuple[str, ...]

    def colour(self, rank: str) -> str:
        """The CSS colour of a ranking."""
        return f"var(--c{self.ranks.index(rank) % len(_LIGHT)})"

    def dash(self, rank: str) -> str:
        """The attribute that dashes the lines of a ranking; empty for the first."""
        index = self.ranks.index(rank)
        # Past the last colour the dashes move on by one, so that colour and dash together stay different.
        dash = _DASHES[(index + index // len(_LIGHT)) % len(_DASHES)]
        return f' stroke-dasharray="{dash}"' if dash else ""

    def marker(self, repair: str, colour: str, size: float = 1.0) -> str:
        """The marker of a repair around the origin, ``size`` times as large as usual."""
        index = self.repairs.index(repair)
        # Around a marker that others lie in, an edge would hide the narrow band that is left of it.
        edge = ' stroke="var(--ground)" stroke-width=".8"' if size == 1.0 else ""
        paint = f'fill="{colour}"{edge}'
        if index >= len(_SHAPES):
            paint = f'fill="var(--ground)" stroke="{colour}"'
        scale = f' transform="scale({size:.2f})"' if size != 1.0 else ""
        return f'<path d="{_SHAPES[index % len(_SHAPES)]}" {paint}{scale}/>'


def style() -> str:
    """The style sheet of the picture, for light and dark."""
    colours = [" ".join(f"--c{i}:{c};" for i, c in enumerate(palette)) for palette in (_LIGHT, _DARK)]
    return _STYLE.replace("LIGHT", colours[0]).replace("DARK", colours[1])


def legend(
    entries: Sequence[tuple[str, str]], *, left: float, right: float, top: float, line: float, gap: float
) -> tuple[str, float]:
    """Signs, 26 px wide, each with its word, wrapped between ``left`` and ``right``; and the y below them."""
    parts, x, y = [], left, top
    for sign, word in entries:
        width = 34 + text_width(word) + gap
        if x > left and x + width > right:
            x, y = left, y + line
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{sign}<text x="34" y="0">{escape(word)}</text></g>')
        x += width
    return "".join(parts), y + 20
