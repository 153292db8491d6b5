"""Latency of a pruned model beside its base, honestly: on any backend, against a roofline, a control and a baseline."""

from gatenorm_export.benching.bench import BenchRequest, bench_points, run_bench
from gatenorm_export.benching.choosing import BACKENDS, backend_for, open_backend, open_backend_for
from gatenorm_export.benching.gate import (
    check_comparable,
    check_rows,
    hold_to_baseline,
    parse_regression,
    read_baseline,
)
from gatenorm_export.benching.words import bench_markdown, bench_tables, gate_tables

__all__ = [
    "BACKENDS",
    "BenchRequest",
    "backend_for",
    "bench_markdown",
    "bench_points",
    "bench_tables",
    "check_comparable",
    "check_rows",
    "gate_tables",
    "hold_to_baseline",
    "open_backend",
    "open_backend_for",
    "parse_regression",
    "read_baseline",
    "run_bench",
]
