"""Which cells of a sweep no other cell beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gatenorm_export.records import SweepCell, SweepFigures


def speed_of(figures: SweepFigures) -> float | None:
    """Decode speed-up, None where latency was not measured."""
    return figures.latency.decode_speedup if figures.latency is not None else None


def saving_of(figures: SweepFigures) -> float | None:
    """The share of the KV cache that is gone, None where the graph has no cache."""
    return 1.0 - figures.kv_share if figures.kv_share is not None else None


def pareto_front(
    cells: Sequence[SweepCell], gain: Callable[[SweepFigures], float | None]
) -> tuple[tuple[SweepCell, float, float], ...]:
    """The measured cells that no other beats, with their gain and their perplexity ratio, by rising gain.

    A cell is beaten by one that gains as much at no more perplexity and is better in one of the two. Cells that are
    the same measurement are on the front together.
    """
    points = [
        (cell, value, cell.figures.ppl_ratio)
        for cell in cells
        if cell.figures is not None and (value := gain(cell.figures)) is not None
    ]
    front = [
        point
        for point in points
        if not any(
            other[1] >= point[1] and other[2] <= point[2] and (other[1], other[2]) != (point[1], point[2])
            for other in points
        )
    ]
    return tuple(sorted(front, key=lambda point: (point[1], point[2])))


def front_sentence(cells: Sequence[SweepCell]) -> str:
    """One sentence that names the cells on both fronts, as rank/repair/layers."""
    parts = []
    for what, gain in (("decode speed-up", speed_of), ("the KV cache saved", saving_of)):
        front = pareto_front(cells, gain)
        if front:
            parts.append(f"against {what}: {', '.join(cell.name for cell, _, _ in front)}")
    if not parts:
        return "No cell was measured, so there is no Pareto front."
    return f"On the Pareto front of perplexity (rank/repair/layers) {'; '.join(parts)}."
