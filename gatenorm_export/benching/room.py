"""Whether memory holds what is measured: asked before it is taken.

Linux promises more memory than there is, so no allocation fails: a point that is too large ends in the kernel killing
the process. Estimates are from below. What they let through by mistake fails as it did, what they refuse could not run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from gatenorm_export.benching.protocol import STEPS, Backend, Point, Side
from gatenorm_export.benching.statistics import Order
from gatenorm_export.errors import RefusedError

_INDEX_BYTES = 8
"""Of an element of tokens, mask and positions."""


def memory_needed(sides: Sequence[Side], point: Point, *, weight_copies: float = 1.0) -> float:
    """Bytes that ``sides`` take at ``point`` when they are loaded at the same time.

    Weights, caches and what is fed stay for the whole measurement. A prefill holds its last cache and its new one, a
    decode step that of the prefill, its past and its present. Logits, scores and activations go after each call, so
    only the larger of the sides' counts.
    """
    steps = STEPS if point.phase == "decode" else 0
    tokens = point.batch * point.sequence
    cached = (3 if steps else 2) * point.batch * (point.sequence + steps)
    fed = _INDEX_BYTES * (3 * tokens + point.batch * steps * (point.sequence + steps))
    held = sum(weight_copies * side.file_bytes + cached * side.kv_bytes_per_token + fed for side in sides)
    return held + max(
        tokens * (side.footprint.logits_per_token + side.footprint.activations_per_token)
        + tokens * point.sequence * side.footprint.scores_per_pair
        for side in sides
    )


def decide_order(
    backend: Backend, sides: Sequence[Side], points: Sequence[Point], asked: Literal["auto", "alternate", "sequential"]
) -> tuple[Order, str]:
    """Whether memory holds both sides at once, at every point that it may hold one side at; and the reason."""
    if asked != "auto":
        return ("pairs", "") if asked == "alternate" else ("apart", "asked for")
    free = backend.memory.available()
    if free is None:
        return "pairs", ""
    fitting = [point for point in points if _least(sides, point, "apart") <= free]
    need = max((memory_needed(sides, point, weight_copies=backend.weight_copies) for point in fitting), default=0)
    if need <= free:
        return "pairs", ""
    return "apart", f"both together may take {_size(need)}, and {_size(free)} are free"


def without_room(backend: Backend, sides: Sequence[Side], points: Collection[Point], order: Order) -> dict[Point, str]:
    """The points that memory does not hold, measured in this order, and the reason of each.

    Raises:
        RefusedError: it holds none of them; the text has both figures of the smallest.
    """
    free = backend.memory.available()
    if free is None:
        return {}
    needs = {point: _least(sides, point, order) for point in points}
    short = {
        point: f"takes about {_size(need)} of memory, and {_size(free)} are free"
        for point, need in needs.items()
        if need > free
    }
    if short and len(short) == len(needs):
        least = min(short, key=lambda point: needs[point])
        raise RefusedError(f"{least.name}: {short[least]}; take a smaller --batch or --sequence, or make room")
    return short


def _least(sides: Sequence[Side], point: Point, order: Order) -> float:
    """With weights once: some runtimes map them, and keep no copies."""
    return max(memory_needed(group, point) for group in ([sides] if order == "pairs" else [[side] for side in sides]))


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"
