"""Backends and models that run nowhere, for what bench makes of their figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from gatenorm_export.benching.protocol import LOADINGS, Pair, Point, Side
from gatenorm_export.cli.main import main
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records.bench import BenchDevice, BenchReport, BenchRow, BenchSide, Clocks, Probe, Timing, Work

WORK = Work(
    weight_bytes=1000,
    flops_per_token=500,
    n_attention=4,
    attention_flops_per_pair=8,
    kv_bytes_per_token=64,
    kv_passes=3,
    score_bytes_per_pair=0,
    skips_masked=False,
    dtype="float32",
)
DEVICE = BenchDevice(
    backend="fake", runtime="fake 1", device="none", driver=None, threads=1000, timer="counter", memory="process"
)


DROP = (1, 2)
"""What is removed from the pairs of graphs."""
QUICK = ["--sequence", "8", "--repeats", "8", "--quiet"]


def bench(*arguments: object) -> int:
    """The exit code of ``gatenorm bench``."""
    return main(["bench", *map(str, arguments)])


def graph_pair(base: Path, folder: Path) -> tuple[Path, Path]:
    """A graph and the one that is pruned from it, in ``folder``, without the layers ``DROP``."""
    prune_graph(base, folder, layers=DROP, plan_sha256="a" * 64)
    return base, folder / "model.onnx"


class FakeModel:
    """Tells ``seconds`` for every call and writes down what happens."""

    notes: tuple[str, ...] = ("a note",)

    def __init__(self, name: str, seconds: float, log: list[str], fails: Callable[[str, int], None] | None) -> None:
        self.name, self.seconds, self.log, self._fails = name, seconds, log, fails
        self._length, self._calls = 0, 0

    def refuses(self, point: Point) -> str | None:
        return "too long for the fake" if point.sequence > 1000 else None

    def prepare(self, tokens: np.ndarray, steps: int) -> None:
        self._length = tokens.shape[1]
        self._tokens = tokens

    def prefill(self) -> None:
        self._note("prefill")

    def decode(self) -> None:
        self._note("decode")

    def rewind(self) -> None:
        self.log.append(f"{self.name} rewind")

    def timed(self, call: Callable[[], None]) -> float:
        call()
        return self.seconds

    def synchronise(self) -> None:
        pass

    def kv_bytes(self) -> int:
        return 64 * int(self._tokens.size)

    def close(self) -> None:
        self.log.append(f"{self.name} close")

    def _note(self, what: str) -> None:
        self._calls += 1
        self.log.append(f"{self.name} {what} {self._length}")
        if self._fails is not None:
            self._fails(what, self._calls)


class FakeMemory:
    def __init__(self, free: int | None = None) -> None:
        self.free = free

    def available(self) -> int | None:
        return self.free

    def begin(self) -> None:
        pass

    def peak(self) -> int | None:
        return 123


class FakeBackend:
    """A base of two seconds and a pruned model of one."""

    weight_copies = 2.0
    loadings = LOADINGS
    sequences = (16, 32)
    device = DEVICE

    def __init__(self, free: int | None = None, fails: Callable[[str, int], None] | None = None) -> None:
        self.memory = FakeMemory(free)
        self.log: list[str] = []
        self.fails = fails

    def pair(self, *, work: bool = True, longest: int | None = None) -> Pair:
        return Pair(self.side("base", 2.0, work), self.side("pruned", 1.0, work), 4, (1,), "f" * 64, longest)

    def side(self, name: str, seconds: float, work: bool = True) -> Side:
        scale = 2 if name == "base" else 1
        what = WORK.model_copy(update={"weight_bytes": 1000 * scale, "flops_per_token": 500 * scale})
        return Side(
            path=name,
            sha256=name,
            file_bytes=100,
            load=lambda: FakeModel(name, seconds, self.log, self.fails),
            cached=True,
            work=what if work else None,
            why_no_work="nothing is known",
        )

    def open(self, base: Path, pruned: Path) -> Pair:
        return self.pair()

    def control(self, native: Path, pair: Pair) -> Side:
        return self.side("native", 1.0)

    def probe(self, like: Work) -> Probe:
        return Probe(bytes_per_s=1e3, flops_per_s=1e6, dtype="float32", how="by decree")


def timing(p50: float, spread: float = 0.01) -> Timing:
    return Timing(
        p50_ms=p50,
        p50_low_ms=p50 * (1 - spread),
        p50_high_ms=p50 * (1 + spread),
        p90_ms=p50 * 1.1,
        p99_ms=p50 * 1.2,
        tokens_per_s=1e3 / p50,
    )


def bench_row(
    phase: str = "decode", sequence: int = 64, base: float = 10.0, pruned: float = 9.0, spread: float = 0.005
) -> BenchRow:
    return BenchRow(
        phase=phase,
        batch=1,
        sequence=sequence,
        steps=16,
        repeats=100,
        base=timing(base),
        pruned=timing(pruned, spread),
        speedup=base / pruned,
        speedup_low=base / pruned * (1 - spread),
        speedup_high=base / pruned * (1 + spread),
        roofline=None,
        clocks=Clocks(),
    )


def faster(report: BenchReport, times: float) -> BenchReport:
    """The report of a pruned model that is ``times`` as fast, by narrow intervals."""
    rows = [
        row.model_copy(
            update={
                "pruned": timing(row.pruned.p50_ms / times),
                "speedup": row.speedup * times,
                "speedup_low": 0.99 * row.speedup * times,
                "speedup_high": 1.01 * row.speedup * times,
            }
        )
        for row in report.rows
    ]
    return report.model_copy(update={"rows": tuple(rows)})


def bench_report(rows: list[BenchRow], **changes: object) -> BenchReport:
    side = BenchSide(
        path="model",
        sha256="0" * 64,
        file_bytes=1,
        load_seconds=0.1,
        peak_memory_bytes=None,
        kv_bytes_per_token=64.0,
        work=None,
    )
    report = BenchReport(
        command="gatenorm bench",
        device=DEVICE,
        base=side,
        pruned=side.model_copy(update={"kv_bytes_per_token": 48.0}),
        plan_sha256=None,
        n_layers=4,
        dropped=(1,),
        alternating=True,
        order_reason="",
        rows=tuple(rows),
        missing=(),
        speedups=(),
        probe=None,
        roofline_reason="not asked for",
        clocks_before=Clocks(),
        clocks_after=Clocks(),
        verdict="",
    )
    return report.model_copy(update=changes)
