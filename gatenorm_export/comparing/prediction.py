"""What the removed bytes and operations should bring by the roofline, beside what was measured."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.errors import GateNormError
from gatenorm_export.progress import Progress
from gatenorm_export.records import Latency


def with_roofline(base: Path, pruned: Path, latency: Latency, *, progress: Progress) -> Latency:
    """``latency`` with a prediction for each row, from the graphs' work and what this machine is measured to do.

    Where the work of a graph cannot be counted, the reason is in the result.
    """
    if latency.decode_speedup is None:
        return latency.model_copy(update={"roofline_reason": "only the work of decoders is counted"})
    from gatenorm_export.benching.context import configs_beside, mixture_of_experts
    from gatenorm_export.benching.graph_work import graph_work
    from gatenorm_export.benching.ort_cpu import OrtCpu
    from gatenorm_export.benching.protocol import Point
    from gatenorm_export.benching.roofline import roofline_row

    try:
        works = [mixture_of_experts(configs_beside(graph)) or graph_work(graph) for graph in (base, pruned)]
    except GateNormError as error:
        return latency.model_copy(update={"roofline_reason": str(error)})
    before, after = works
    if isinstance(before, str) or isinstance(after, str):
        reason = before if isinstance(before, str) else str(after)
        return latency.model_copy(update={"roofline_reason": reason})
    with progress.task("measure what the machine can do"):
        probe = OrtCpu().probe(before)
    rows = []
    for row in latency.rows:
        point = Point(row.phase, latency.batch if row.batch is None else row.batch, row.sequence)
        measured = (row.speedup, row.speedup_low, row.speedup_high)
        rows.append(row.model_copy(update={"roofline": roofline_row(before, after, probe, point, measured)}))
    return latency.model_copy(update={"rows": tuple(rows), "probe": probe})
