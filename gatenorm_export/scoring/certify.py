"""From intervals and cuts to what is certain: which layers are surely among the lowest, and which must be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MUCH_SHARPER = 2.0


@dataclass(frozen=True)
class Interval:
    """A layer and the interval that holds its score. ``final`` intervals cannot be made narrower."""

    layer: int
    low: float
    high: float
    final: bool = False


@dataclass(frozen=True)
class Certainty:
    """Whether the ``n`` lowest scores are known. ``tied`` are layers on both sides of the cut that rounding cannot tell
    apart; with those the deeper layer goes first, as in every plan."""

    n: int
    certain: bool
    tied: tuple[int, ...] = ()


def undecided(intervals: Sequence[Interval], n: int) -> tuple[int, ...]:
    """Layers of which it is not certain on which side of the cut after the ``n`` lowest they are.

    Of equal scores the deeper layer counts as the lower one, so two exact scores that are equal are decided. A layer is
    surely in when at least ``len - n`` others surely come after it, surely out when at least ``n`` surely come before.
    """
    total = len(intervals)
    if not 0 < n < total:
        return ()
    open_layers = []
    for one in intervals:
        before = sum(_surely_before(other, one) for other in intervals)
        after = sum(_surely_before(one, other) for other in intervals)
        if before < n and after < total - n:
            open_layers.append(one.layer)
    return tuple(open_layers)


def most_urgent(intervals: Sequence[Interval], n: int) -> tuple[int, ...]:
    """Which layers to look at next so that the ``n`` lowest become certain: none when they are, or cannot be.

    Of the undecided layers that look low the one whose interval reaches highest, and of those that look high the one
    whose interval reaches lowest: what is said of these two decides the most (LUCB, Kalyanakrishnan et al., ICML 2012).
    But where one of the two is known much better than the other, to make it sharper yet would decide little: the next
    layer on the other's side, which that one is as close to, comes in its place.
    """
    left = frozenset(undecided(intervals, n))
    ranked = sorted(intervals, key=lambda one: (one.low + one.high, -one.layer))
    low = sorted((one for one in ranked[:n] if one.layer in left and not one.final), key=lambda one: -one.high)
    high = sorted((one for one in ranked[n:] if one.layer in left and not one.final), key=lambda one: one.low)
    chosen = [side[0] for side in (low, high) if side]
    widest = max((one.high - one.low for one in chosen), default=0.0)
    chosen = [one for one in chosen if _MUCH_SHARPER * (one.high - one.low) >= widest]
    if len(chosen) == 1:
        side = low if chosen[0] in low else high
        chosen += [one for one in side[1:] if _MUCH_SHARPER * (one.high - one.low) >= widest][:1]
    return tuple(one.layer for one in chosen)


def certainty(intervals: Sequence[Interval], n: int) -> Certainty:
    """The state of one cut. Layers that are still undecided although their intervals are final are tied."""
    left = undecided(intervals, n)
    if not left:
        return Certainty(n, certain=True, tied=_equal_across(intervals, n))
    final = {one.layer for one in intervals if one.final}
    return Certainty(n, certain=False, tied=left if final.issuperset(left) else ())


def _surely_before(one: Interval, other: Interval) -> bool:
    """Whether ``one`` surely goes before ``other``."""
    if one.layer == other.layer:
        return False
    if one.high < other.low:
        return True
    points = one.low == one.high == other.low == other.high
    return points and one.layer > other.layer


def _equal_across(intervals: Sequence[Interval], n: int) -> tuple[int, ...]:
    """Layers with the very same score as another one on the other side of a cut that is decided by depth alone."""
    if not 0 < n < len(intervals):
        return ()
    ranked = sorted(intervals, key=lambda one: (one.low, one.high, -one.layer))
    last, first = ranked[n - 1], ranked[n]
    if not last.low == last.high == first.low == first.high:
        return ()
    return tuple(sorted(one.layer for one in intervals if one.low == one.high == last.low))
