"""What the removed bytes and operations should bring, by the classical roofline, and how much of it was found.

A call has two parts: the matrices with weights, and attention over the cache. Each takes as long as the slower of
moving its bytes and doing its operations at the rates that the device was measured to have; see Williams, Waterman and
Patterson, "Roofline" (2009). What is in neither part (norms, sums, the embedding, starting kernels) is not removed
with attention or costs little, and is left out: the prediction is a little too good, as a goal should be.
"""

from __future__ import annotations

from gatenorm_export.benching.protocol import Point
from gatenorm_export.records.bench import ROOFLINE_GOAL, Probe, RooflineRow, Work


def predicted_seconds(work: Work, probe: Probe, point: Point) -> float:
    """Seconds of one call at ``point``, from below.

    A step of ``s`` tokens on a cache of ``p`` multiplies s x (p + s) pairs of query and key, or the half of s x s
    where what lies after a query is skipped.
    """
    step, past = (point.sequence, 0) if point.phase == "prefill" else (1, point.sequence)
    keys = past + step
    pairs = step * past + (step * (step + 1) / 2 if work.skips_masked else step * step)
    weights = max(work.weight_bytes / probe.bytes_per_s, work.flops_per_token * point.batch * step / probe.flops_per_s)
    moved = work.kv_bytes_per_token * keys * work.kv_passes + work.score_bytes_per_pair * pairs
    attention = max(
        point.batch * moved / probe.bytes_per_s,
        point.batch * work.attention_flops_per_pair * pairs / probe.flops_per_s,
    )
    return weights + attention


def roofline_row(
    base: Work, pruned: Work, probe: Probe, point: Point, measured: tuple[float, float, float]
) -> RooflineRow:
    """Predicted against ``measured`` (speed-up, low, high)."""
    before, after = (predicted_seconds(work, probe, point) for work in (base, pruned))
    predicted = before / after
    speedup, _, high = measured
    return RooflineRow(
        base_ms=1e3 * before,
        pruned_ms=1e3 * after,
        speedup=predicted,
        share=speedup / predicted,
        short=speedup / predicted < ROOFLINE_GOAL,
        certain=high / predicted < ROOFLINE_GOAL,
    )
