"""Latency of a pruned model beside its base: every measured point, what the hardware would allow, and a baseline."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record

Phase = Literal["prefill", "decode"]


class BenchDevice(Part):
    """What a measurement ran on, and how it was timed. Results with another of these are not comparable.

    ``driver`` is None without a GPU. ``memory`` says whose peak is reported: the process's (resident memory), the
    device's, or that of torch's allocator.
    """

    backend: str
    runtime: str
    device: str
    driver: str | None
    threads: int
    timer: str
    memory: Literal["process", "device", "allocator"]


class Clocks(Part):
    """How fast the machine ran, and how busy it was, at one moment. None is what this machine does not tell."""

    cpu_mhz: float | None = None
    load_1min: float | None = None
    gpu_sm_mhz: float | None = None
    gpu_sm_max_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_celsius: float | None = None
    gpu_watts: float | None = None


class Timing(Part):
    """One model at one point; ``p50_low_ms`` to ``p50_high_ms`` is the 95 % bootstrap interval of the median."""

    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float
    p99_ms: float
    tokens_per_s: float


class Work(Part):
    """What one call of a model has to do, whatever it runs on; see ``benching/roofline.py`` for the use of it.

    ``weight_bytes`` are those of every matrix that is multiplied with, read once a call; ``flops_per_token`` two for
    each of their elements. ``attention_flops_per_pair`` are those of one query with one key, all layers and heads
    together. ``kv_passes`` is how often a step touches the cache, ``score_bytes_per_pair`` what attention writes and
    reads again for each query and key where it is not fused. ``skips_masked`` says that keys after a query cost
    nothing.
    """

    weight_bytes: int
    flops_per_token: int
    n_attention: int
    attention_flops_per_pair: int
    kv_bytes_per_token: int
    kv_passes: int
    score_bytes_per_pair: int
    skips_masked: bool
    dtype: str
    """What the products are computed in."""


class Probe(Part):
    """What the device was measured to do, in the same run and through the same runtime."""

    bytes_per_s: float
    flops_per_s: float
    dtype: str
    how: str


ROOFLINE_GOAL = 0.95
"""A share of the predicted speed-up below this is reported as left on the table."""


class RooflineRow(Part):
    """Predicted seconds of one point, and how much of the predicted speed-up was found.

    ``share`` is measured over predicted speed-up; ``short`` says that it is below 0.95 by the median, ``certain`` that
    even the upper end of the interval is.
    """

    base_ms: float
    pruned_ms: float
    speedup: float
    share: float
    short: bool
    certain: bool

    def reached(self, speedup_low: float) -> bool | None:
        """Whether a row with this lower end of its interval has 0.95 of the prediction; None is not decided.

        It has where the whole interval shows it, and has not where no part does: a median alone shows nothing.
        """
        if self.certain:
            return False
        return True if speedup_low >= ROOFLINE_GOAL * self.speedup else None


class BenchRow(Part):
    """One measured point. ``speedup`` is base over pruned time with its 95 % interval.

    ``sequence`` is the prompt of a prefill; for decode, how many tokens are in the cache at the first of ``steps``
    timed steps, after which the cache is taken back to that length.
    """

    phase: Phase
    batch: int
    sequence: int
    steps: int
    repeats: int
    base: Timing
    pruned: Timing
    speedup: float
    speedup_low: float
    speedup_high: float
    roofline: RooflineRow | None
    clocks: Clocks

    @property
    def key(self) -> tuple[str, int, int]:
        """What a row is found by in another report."""
        return self.phase, self.batch, self.sequence

    @property
    def name(self) -> str:
        """The same in words."""
        return row_name(self.phase, self.batch, self.sequence)


def row_name(phase: str, batch: int, sequence: int) -> str:
    """A point in words: ``decode, 512 tokens, batch 1``."""
    return f"{phase}, {sequence} tokens, batch {batch}"


class MissingRow(Part):
    """A point that was asked for and not measured, and why."""

    phase: Phase
    batch: int
    sequence: int
    reason: str

    @property
    def name(self) -> str:
        """The point in words."""
        return row_name(self.phase, self.batch, self.sequence)


class BenchSide(Part):
    """One of the two models: what was loaded, how long that took, and what it occupies.

    ``load_seconds`` is from the file to a model that is ready. ``peak_memory_bytes`` is at the largest point, over
    what was in use before loading; None where it could not be measured. ``kv_bytes_per_token`` is counted on the cache
    tensors that a prefill left; None where there is no cache.
    """

    path: str
    sha256: str | None
    file_bytes: int
    load_seconds: float
    peak_memory_bytes: int | None
    kv_bytes_per_token: float | None
    work: Work | None


class Speedup(Part):
    """The geometric mean over all rows of a phase, with its 95 % interval."""

    phase: Phase
    speedup: float
    low: float
    high: float


class ControlRow(Part):
    """Native over pruned time at one point: 1 is equal, above 1 the pruned one is faster."""

    phase: Phase
    batch: int
    sequence: int
    native: Timing
    pruned: Timing
    ratio: float
    ratio_low: float
    ratio_high: float


class Control(Part):
    """The pruned model beside one that was made without those layers from the start.

    ``differences`` are those of structure, in words; ``ratio`` is native over pruned time, all rows together.
    ``passed`` says that the whole interval lies within the tolerance; None where only a part of it does.
    """

    native: str
    native_sha256: str | None
    tolerance: float
    rows: tuple[ControlRow, ...]
    differences: tuple[str, ...]
    ratio: float
    ratio_low: float
    ratio_high: float
    passed: bool | None
    sentence: str


class BenchReport(Record):
    """Base and pruned model timed on one device, and the ratio of the two.

    ``alternating`` says that the two took turns call by call; otherwise ``order_reason`` says why not. ``loadings`` is
    how often both were loaded, base first and pruned first by turns; at a single one, the order has moved the ratios.
    ``plan_sha256`` is that of the plan's file, where the pruned model's manifest names one.
    """

    kind: Literal["bench"] = "bench"
    command: str
    device: BenchDevice
    base: BenchSide
    pruned: BenchSide
    plan_sha256: str | None
    n_layers: int
    dropped: tuple[int, ...]
    alternating: bool
    loadings: int = 1
    order_reason: str
    rows: tuple[BenchRow, ...]
    missing: tuple[MissingRow, ...]
    speedups: tuple[Speedup, ...]
    probe: Probe | None
    roofline_reason: str | None
    """Why there is no roofline."""
    clocks_before: Clocks
    clocks_after: Clocks
    control: Control | None = None
    notes: tuple[str, ...] = ()
    verdict: str

    def speedup_of(self, phase: Phase) -> Speedup | None:
        """The speed-up of a phase, where it was measured."""
        return next((found for found in self.speedups if found.phase == phase), None)


class MovedRow(Part):
    """How a row changed against a baseline, as relative changes with 95 % intervals; positive is slower.

    ``ratio_change`` is of the pruned model's time over its base's, ``p50_change`` of the pruned model's median alone,
    None where devices differ. ``slower`` names the measures by which it lost more than the limit, ``undecided`` those
    whose interval is too wide to tell.
    """

    phase: Phase
    batch: int
    sequence: int
    baseline_speedup: float
    speedup: float
    ratio_change: float
    ratio_low: float
    ratio_high: float
    baseline_p50_ms: float
    p50_ms: float
    p50_change: float | None
    p50_low: float | None
    p50_high: float | None
    slower: tuple[Literal["ratio", "p50"], ...]
    undecided: tuple[Literal["ratio", "p50"], ...] = ()
    faster: bool

    @property
    def name(self) -> str:
        """The point in words."""
        return row_name(self.phase, self.batch, self.sequence)


class GateReport(Record):
    """A bench held against a baseline. ``passed`` is None where no row is slower, and one is not decided."""

    kind: Literal["bench-gate"] = "bench-gate"
    baseline: str
    max_regression: float
    across_devices: bool
    rows: tuple[MovedRow, ...]
    missing: tuple[str, ...]
    """Rows of the baseline that were not measured now."""
    added: tuple[str, ...]
    notes: tuple[str, ...]
    passed: bool | None
    sentence: str
