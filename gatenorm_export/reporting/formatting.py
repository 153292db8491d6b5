"""Numbers as people read them: three significant digits, thousands separated, a unit, and a word for what is no number.

A no-break space stands between a number and its unit, so that no table cell or sentence parts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SPACE = "\u00a0"
MINUS = "\u2212"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, whole numbers never rounded away: 3552.1 is ``3,552``.

    Below a thousandth and from a billion on, a power of ten is written out. Not-a-number and infinities have names.
    """
    if math.isnan(value):
        return "not a number"
    sign = MINUS if value < 0 else ""
    size = abs(value)
    if math.isinf(size):
        return f"{sign}∞"
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e9:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{sign}{mantissa}{SPACE}×{SPACE}10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    if size >= 10 ** (digits - 1):
        return f"{sign}{size:,.0f}"
    return f"{sign}{size:.{digits}g}"


def fixed(value: float, decimals: int) -> str:
    """``value`` with a fixed number of decimals, for columns whose figures are compared digit by digit."""
    if not math.isfinite(value) or abs(value) >= 1e9:
        return number(value)
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def times(value: float) -> str:
    """A ratio of speeds: ``1.12×``."""
    return f"{fixed(value, 2)}×" if math.isfinite(value) else number(value)


def interval(low: float, high: float) -> str:
    """An interval of speed ratios: ``1.08× to 1.16×``."""
    return f"{times(low)} to {times(high)}"


def percent(share: float) -> str:
    """A share as percent with one decimal: 0.9132 is ``91.3 %``."""
    return f"{fixed(100 * share, 1)}{SPACE}%" if math.isfinite(share) else number(share)


def change(before: float, after: float) -> str:
    """The relative change in percent with its sign, or words where there is none."""
    if before == after:
        return "no change"
    if before == 0 or not (math.isfinite(before) and math.isfinite(after)):
        return "not defined"
    share = after / before - 1
    return f"{'+' if share > 0 else ''}{percent(share)}"


def count(value: int) -> str:
    """A whole number with its thousands separated."""
    return f"{value:,}".replace("-", MINUS)


def size(n_bytes: int) -> str:
    """A number of bytes in decimal units (1 kB is 1000 bytes), as disks and cards are labelled."""
    if n_bytes < 1000:
        return f"{n_bytes}{SPACE}bytes"
    units = ("kB", "MB", "GB", "TB")
    power = next((power for power, _ in enumerate(units, 1) if n_bytes / 1000**power < 999.5), len(units))
    value, unit = n_bytes / 1000**power, units[power - 1]
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}{SPACE}{unit}"


def milliseconds(value: float) -> str:
    """A duration given in milliseconds, in ms or, from ten seconds on, in s."""
    return f"{number(value / 1000)}{SPACE}s" if math.isfinite(value) and value >= 1e4 else f"{number(value)}{SPACE}ms"


def layer_list(layers: Sequence[int]) -> str:
    """Layer numbers in words, runs of three and more shortened: ``19 and 27 to 29``; ``none`` for an empty list."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words: list[str] = []
    for run in runs:
        words.extend([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(layer) for layer in run])
    if len(words) < 2:
        return "".join(words) or "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def verdict_word(passed: bool | None) -> str:
    """Pass or fail as a sign and a word, so that it can be read without colour."""
    return "– not run" if passed is None else "✓ passed" if passed else "✗ failed"
