"""What pruning gained: prefill and decode on ONNX Runtime's CPU provider, base and pruned call by call in turn.

polygraphy's timing is not used: its maintainers call it unreliable for comparisons.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatenorm_export.benching.clocks import OtherWork
from gatenorm_export.benching.statistics import order_free_ratios
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS, DecodeSignature, signature_of
from gatenorm_export.errors import needs
from gatenorm_export.model_configs import configs_of
from gatenorm_export.processor import device_name, usable_threads
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import Latency, LatencyRow, ModelSpec
from gatenorm_export.sessions import open_session

SEQUENCES = (64, 256, 512)
REPEATS = {"prefill": 8, "decode": 76}
"""Pairs of calls per point, at each of two loadings. A removed sublayer of thirty is worth about one per cent of a
decode step, and single calls on a shared machine scatter by ten, so decode needs many pairs; a prefill is long enough
to need few. Even numbers: pairs of both orders belong together."""

FORWARD_SECONDS, FORWARD_REPEATS = 5.0, (8, 50)
"""A pass of what is no decoder takes from a millisecond to seconds: at each loading as many pairs as fit the time,
within bounds."""

WARM_UP = 3
BATCH = 1

OpenSide = Callable[[Path], Callable[["Point"], Callable[[], Any]]]
"""Loads a graph; what it gives makes the call of a point."""


def measure_latency(
    base: Path, pruned: Path, *, sequences: Sequence[int] = SEQUENCES, progress: Progress | None = None
) -> Latency:
    """Time prefill of ``sequences`` tokens, and decode of one token with that many in the cache.

    Base and pruned are called in turn, the order changing from pair to pair, so that drift of the machine hits both.
    Half of the pairs are measured with base loaded first, half with pruned: the second finds the better pages (see
    ``benching/measuring.py``). The speed-up is the geometric mean of the medians of :func:`order_free_ratios`, its
    interval a seeded 95 % bootstrap. Caches stay in ONNX Runtime's own values: nothing is copied between calls.

    Raises:
        MissingPartError: onnxruntime is not installed.
        InputError: a graph cannot be loaded.
    """
    progress = progress or Quiet()

    def open_side(graph: Path) -> Callable[[Point], Callable[[], Any]]:
        session = open_session(graph)
        return functools.partial(_call, session, signature_of(session, graph))

    points = [Point(phase, sequence) for phase in ("prefill", "decode") for sequence in sequences]
    return measure_points((base, pruned), points, open_side, unit="tokens", progress=progress)


def decoder_latency(base: Path, pruned: Path, spec: ModelSpec | None, *, progress: Progress) -> Latency:
    """:func:`measure_latency` of the usual lengths, as far as the model's table of positions goes, where it has one."""
    # One less: a decode step comes after as many.
    longest = (configs_of(base.parent, spec).table_of_positions or SEQUENCES[-1] + 1) - 1
    sequences = sorted({min(sequence, longest) for sequence in SEQUENCES})
    return measure_latency(base, pruned, sequences=sequences, progress=progress)


@dataclasses.dataclass(frozen=True)
class Point:
    """What is timed: a phase, how long the sequence is (of what the unit counts), and how many at once."""

    phase: Literal["prefill", "decode"]
    sequence: int
    batch: int = BATCH


def measure_points(
    graphs: tuple[Path, Path], points: Sequence[Point], open_side: OpenSide, *, unit: str, progress: Progress
) -> Latency:
    """Time base and pruned in turns, at two loadings; decode may be absent. A machine that was not idle is noted."""
    with needs("ort", "latency"):
        import onnxruntime
    batches = {point.batch for point in points}
    decodes = any(point.phase == "decode" for point in points)
    seconds: dict[Point, list[np.ndarray]] = {point: [] for point in points}
    others = OtherWork()
    with progress.task("measure latency", total=2 * len(points)) as bar:
        for loading in ((0, 1), (1, 0)):
            opened = {which: open_side(graphs[which]) for which in loading}
            for point in points:
                calls = [opened[which](point) for which in (0, 1)]
                seconds[point].append(_alternate(calls, REPEATS[point.phase] if decodes else _repeats(calls)))
                bar.advance()
            # The next loading is to find all memory free.
            del opened, calls
            gc.collect()
    loaded = others.busy(usable_threads())
    rows = [_row(point, seconds[point], with_batch=batches != {BATCH}) for point in points]
    found = {
        phase: _speedup(*(part for point in points if point.phase == phase for part in seconds[point]))
        for phase in {point.phase for point in points}
    }
    prefill, prefill_low, prefill_high = found["prefill"]
    decode, decode_low, decode_high = found.get("decode", (None, None, None))
    return Latency(
        backend=f"ONNX Runtime {onnxruntime.__version__} CPU",
        device=device_name(),
        threads=usable_threads(),
        batch=BATCH,
        unit=unit,
        rows=tuple(rows),
        prefill_speedup=prefill,
        prefill_speedup_low=prefill_low,
        prefill_speedup_high=prefill_high,
        decode_speedup=decode,
        decode_speedup_low=decode_low,
        decode_speedup_high=decode_high,
        notes=() if loaded is None else (loaded,),
    )


def speedup_with_interval(*ratios: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median of ratios base / pruned, [n], with its 95 % bootstrap interval.

    Of several sets of pairs (one a sequence length and loading) it is the geometric mean of their medians, since ratios
    multiply; its interval is narrower than each one's, for it rests on all pairs.
    """
    rng = np.random.default_rng(seed)
    logs = [np.log(np.median(rng.choice(part, size=(2000, len(part))), axis=1)) for part in ratios]
    low, high = np.exp(np.quantile(np.mean(logs, axis=0), [0.025, 0.975]))
    middle = np.exp(np.mean([np.log(np.median(part)) for part in ratios]))
    return float(middle), float(low), float(high)


def _speedup(*seconds: np.ndarray) -> tuple[float, float, float]:
    return speedup_with_interval(*(order_free_ratios(part) for part in seconds))


def _call(session: Any, signature: DecodeSignature, point: Point) -> Callable[[], Any]:
    """A function that runs one step."""
    from onnxruntime import OrtValue

    step, past = (point.sequence, 0) if point.phase == "prefill" else (1, point.sequence)
    # Any tokens do: the time of a dense decoder does not depend on which they are.
    feed = {
        TOKENS: np.arange(step, dtype=np.int64)[None] % 97 + 3,
        MASK: np.ones((BATCH, past + step), np.int64),
        POSITIONS: np.arange(past, past + step, dtype=np.int64)[None],
    }
    values = {name: OrtValue.ortvalue_from_numpy(feed[name]) for name in signature.plain}
    values |= {entry.name: OrtValue.ortvalue_from_numpy(entry.filled(BATCH, past)) for entry in signature.past}
    names = [signature.logits, *signature.present]
    return lambda: session.run_with_ort_values(names, values)


def _repeats(calls: list[Callable[[], Any]]) -> int:
    """An even number of pairs that takes about ``FORWARD_SECONDS``."""
    start = time.perf_counter()
    for call in calls:
        call()
    fewest, most = FORWARD_REPEATS
    return 2 * round(min(max(FORWARD_SECONDS / (time.perf_counter() - start), fewest), most) / 2)


def _alternate(calls: list[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Seconds [2, repeats] of base and pruned in turns, after a warm-up."""
    for _ in range(WARM_UP):
        for call in calls:
            call()
    seconds = np.zeros((2, repeats))
    for pair in range(repeats):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            start = time.perf_counter()
            calls[which]()
            seconds[which, pair] = time.perf_counter() - start
    return seconds


def _row(point: Point, loadings: Sequence[np.ndarray], *, with_batch: bool) -> LatencyRow:
    seconds = np.concatenate(loadings, axis=1)
    tokens = point.batch * (point.sequence if point.phase == "prefill" else 1)
    base_p50, pruned_p50 = np.median(seconds, axis=1)
    base_p90, pruned_p90 = np.quantile(seconds, 0.9, axis=1)
    speedup, low, high = _speedup(*loadings)
    return LatencyRow(
        phase=point.phase,
        sequence=point.sequence,
        batch=point.batch if with_batch else None,
        repeats=seconds.shape[1],
        base_p50_ms=1e3 * base_p50,
        base_p90_ms=1e3 * base_p90,
        pruned_p50_ms=1e3 * pruned_p50,
        pruned_p90_ms=1e3 * pruned_p90,
        base_tokens_per_s=tokens / base_p50,
        pruned_tokens_per_s=tokens / pruned_p50,
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
    )
