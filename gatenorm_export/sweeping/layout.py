"""Arithmetic of a picture: scales, round ticks, and labels that keep clear of each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CHARACTER = 6.9
"""Width in px of an average character at 12 px, on the wide side, so that words that fit here fit in any font."""


def text_width(text: str) -> float:
    """An upper estimate of the width of ``text`` at 12 px, in px."""
    return _CHARACTER * len(text)


@dataclass(frozen=True)
class Scale:
    """A linear map from values ``low`` to ``high`` onto px ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of ``value`` in px."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Box:
    """A rectangle in px."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, half: float) -> Box:
        """A square with its centre at x, y."""
        return cls(x - half, y - half, x + half, y + half)

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common that is not on an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, frame: Box) -> bool:
        """Whether all of it lies in ``frame``."""
        return (
            frame.left <= self.left
            and frame.top <= self.top
            and self.right <= frame.right
            and self.bottom <= frame.bottom
        )

    def near(self, x: float, y: float) -> tuple[float, float]:
        """The point of the rectangle that is nearest to x, y."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


@dataclass(frozen=True)
class Label:
    """A word in a box that belongs to the point x, y; ``lead`` where a line must say so."""

    word: str
    x: float
    y: float
    box: Box
    lead: bool


def place_labels(wanted: Mapping[tuple[float, float], str], taken: Sequence[Box], frame: Box) -> list[Label]:
    """A place for the word of each point: inside ``frame``, clear of ``taken`` and of the other words.

    A word is tried close to its point first, then farther away, with a line. In a picture so full that no place is
    free it goes where it meets fewest boxes.
    """
    labels: list[Label] = []
    boxes = list(taken)
    for (x, y), word in wanted.items():
        width, best, fewest = text_width(word), None, math.inf
        for far, turn in itertools.product((0, 14, 28, 42, 60, 80, 110, 150), range(16)):
            # Below right first, where neither the front nor the lines of the series, which rise, are likely.
            angle = math.pi / 4 + turn * math.pi / 8
            across, down = math.cos(angle) * (12 + far + width / 2), math.sin(angle) * (16 + far)
            box = Box(x + across - width / 2, y + down - 7, x + across + width / 2, y + down + 7)
            if not box.within(frame):
                continue
            met = sum(box.meets(other) for other in boxes)
            if met < fewest:
                best, fewest = Label(word, x, y, box, lead=far > 0), met
            if not met:
                break
        if best is not None:
            labels.append(best)
            boxes.append(best.box)
    return labels


def share_ticks(low: float, high: float) -> tuple[list[float], float, float]:
    """Round values over a range, and the range widened to hold at least two of them."""
    if high - low < 1e-3:
        low, high = low - 0.01, high + 0.01
    step = _round_step((high - low) / 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)], low, high


def ratio_ticks(low: float, high: float) -> tuple[list[tuple[float, str]], float, float]:
    """Round ratios with their words for a logarithmic axis, and the range they lie in."""
    low, high = low * 0.99, high * 1.01
    if high / low < 4:
        step = _round_step((high - low) / 7)
        values = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if high / low < 2000 else (1,)
        values = [factor * 10.0**power for power in powers for factor in factors]
        values = [value for value in values if low <= value <= high]
    return [(value, f"{round(value, 6):g}" if value < 1e6 else f"{value:.0e}") for value in values], low, high


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999))
