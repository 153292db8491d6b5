"""What pruning gained on the GPU: both engines timed as `gatenorm bench` does it, in the form of other latencies."""

from __future__ import annotations

from gatenorm_export.benching import BenchRequest, open_backend, run_bench
from gatenorm_export.building import find_gpu
from gatenorm_export.building.reach import PREFILL
from gatenorm_export.comparing.engine_pair import NO_GPU, EnginePair
from gatenorm_export.decode_signature import TOKENS
from gatenorm_export.errors import GateNormError
from gatenorm_export.graph_pair import GraphPair
from gatenorm_export.progress import Progress
from gatenorm_export.records import EngineArtifact, Latency, LatencyRow
from gatenorm_export.records.bench import BenchReport, BenchRow

MINUTES = 2.0
"""For all points together; `gatenorm bench` takes longer, and any lengths that the engines' profiles admit."""


def measure_engines(engines: EnginePair, graphs: GraphPair, *, progress: Progress) -> tuple[Latency | None, str]:
    """Time both engines in turns, at lengths that their profiles admit; or the reason why that was not done."""
    if find_gpu() is None:
        return None, NO_GPU
    record = engines.base_record
    try:
        backend = open_backend(record.flavour, graphs=(graphs.base, graphs.pruned))
        pair = backend.open(engines.base, engines.pruned)
        request = BenchRequest(sequences=sequences_of(record), max_minutes=MINUTES)
        return latency_of_bench(run_bench(backend, pair, request, progress=progress))
    except GateNormError as error:
        return None, f"not measured: {error}"


def sequences_of(record: EngineArtifact) -> tuple[int, ...]:
    """A quarter, half and all of the longest prompt that the engine takes, in tokens."""
    longest = next(
        (
            bound.max[1]
            for profile in record.profiles
            if profile.name == PREFILL
            for bound in profile.bounds
            if bound.input == TOKENS
        ),
        512,
    )
    return tuple(sorted({max(longest // part, 1) for part in (4, 2, 1)}))


def latency_of_bench(report: BenchReport) -> tuple[Latency | None, str]:
    """A bench of a decoder as a latency; or why it is none."""
    prefill, decode = report.speedup_of("prefill"), report.speedup_of("decode")
    if prefill is None or decode is None:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in report.missing)
        return None, f"not measured: {reasons or 'no point could be'}"
    batches = {row.batch for row in report.rows}
    return (
        Latency(
            backend=report.device.runtime,
            device=report.device.device,
            threads=report.device.threads,
            batch=min(batches),
            rows=tuple(_row(row, with_batch=len(batches) > 1) for row in report.rows),
            prefill_speedup=prefill.speedup,
            prefill_speedup_low=prefill.low,
            prefill_speedup_high=prefill.high,
            decode_speedup=decode.speedup,
            decode_speedup_low=decode.low,
            decode_speedup_high=decode.high,
            probe=report.probe,
            roofline_reason=report.roofline_reason,
            notes=report.notes,
        ),
        "",
    )


def _row(row: BenchRow, *, with_batch: bool) -> LatencyRow:
    return LatencyRow(
        phase=row.phase,
        sequence=row.sequence,
        batch=row.batch if with_batch else None,
        repeats=row.repeats,
        base_p50_ms=row.base.p50_ms,
        base_p90_ms=row.base.p90_ms,
        pruned_p50_ms=row.pruned.p50_ms,
        pruned_p90_ms=row.pruned.p90_ms,
        base_tokens_per_s=row.base.tokens_per_s,
        pruned_tokens_per_s=row.pruned.tokens_per_s,
        speedup=row.speedup,
        speedup_low=row.speedup_low,
        speedup_high=row.speedup_high,
        roofline=row.roofline,
    )
