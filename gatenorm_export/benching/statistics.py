"""Medians with bootstrap intervals: of one model, and of two that were timed in turns or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from gatenorm_export.records.bench import Timing

RESAMPLES = 2000
Order = Literal["pairs", "apart"]


def timing_of(seconds: np.ndarray, tokens: int, *, seed: int = 0) -> Timing:
    """Quantiles of ``seconds`` [repeats] of calls that handle ``tokens`` each, and the median's 95 % interval."""
    p50, p90, p99 = np.quantile(seconds, [0.5, 0.9, 0.99])
    medians = bootstrap_medians(seconds, np.random.default_rng(seed))
    low, high = np.quantile(medians, [0.025, 0.975])
    return Timing(
        p50_ms=1e3 * p50,
        p50_low_ms=1e3 * low,
        p50_high_ms=1e3 * high,
        p90_ms=1e3 * p90,
        p99_ms=1e3 * p99,
        tokens_per_s=tokens / p50,
    )


def bootstrap_medians(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Medians [resamples] of samples of ``values`` [n] drawn with replacement."""
    return np.asarray(np.median(rng.choice(values, size=(RESAMPLES, len(values))), axis=1))


def speedup_apart(*seconds: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median over median of seconds [2, repeats] that were not measured in pairs, with a 95 % bootstrap interval.

    Both medians are drawn anew in each resample. Of several sets (one a row) it is the geometric mean. Drift of the
    machine between the two is in the ratio and not in the interval; that is why turns are better.
    """
    rng = np.random.default_rng(seed)
    logs = [np.log(bootstrap_medians(base, rng) / bootstrap_medians(pruned, rng)) for base, pruned in seconds]
    low, high = np.exp(np.quantile(np.mean(logs, axis=0), [0.025, 0.975]))
    middle = np.exp(np.mean([np.log(np.median(base) / np.median(pruned)) for base, pruned in seconds]))
    return float(middle), float(low), float(high)


def order_free_ratios(seconds: np.ndarray) -> np.ndarray:
    """Ratios base / pruned [repeats / 2] of seconds [2, repeats]: the geometric mean of two pairs in opposite order.

    Whichever is called after the other finds its caches cold; over both orders that cancels, where a median of single
    pairs would jump between the two.
    """
    pairs = seconds[0] / seconds[1]
    return np.asarray(np.sqrt(pairs[0::2] * pairs[1::2]))


def speedup_in_turns(*rows: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """The geometric mean, over rows and loadings, of the median ratio, with a 95 % bootstrap interval.

    A row is the seconds [2, repeats] of each loading, base first and pruned first by turns. A resample draws pairs
    within each loading. Where each order was loaded more than once it draws loadings too, the same for all rows, since
    a loading moves them together; one less of each order than there are, which gives so few their right spread.
    """
    rng = np.random.default_rng(seed)
    ratios = [[order_free_ratios(part) for part in row] for row in rows]
    logs = np.mean([[np.log(bootstrap_medians(part, rng)) for part in row] for row in ratios], axis=0)
    of_each_order = len(logs) // 2
    if of_each_order > 1:
        drawn = (
            2 * rng.integers(of_each_order, size=(2, of_each_order - 1, RESAMPLES)) + np.array([0, 1])[:, None, None]
        )
        logs = logs[drawn, np.arange(RESAMPLES)].mean(axis=1)
    low, high = np.exp(np.quantile(logs.mean(axis=0), [0.025, 0.975]))
    middle = np.exp(np.mean([[np.log(np.median(part)) for part in row] for row in ratios]))
    return float(middle), float(low), float(high)


def speedup_of(*rows: Sequence[np.ndarray], order: Order) -> tuple[float, float, float]:
    """Speed-up with its interval, of one row's seconds, [2, repeats] for each loading, or of several rows together."""
    return speedup_apart(*(part for row in rows for part in row)) if order == "apart" else speedup_in_turns(*rows)
