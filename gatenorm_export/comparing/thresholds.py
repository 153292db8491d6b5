"""The limits that make a comparison fail a pipeline."""

from __future__ import annotations

import dataclasses

from gatenorm_export.errors import RefusedError
from gatenorm_export.records import Latency, Quality, Threshold


@dataclasses.dataclass(frozen=True)
class Limits:
    """What must hold; None asks nothing. ``min_speedup`` is of decode, pruned over unpruned."""

    max_ppl_ratio: float | None = None
    min_speedup: float | None = None
    max_kl: float | None = None


def check_limits(limits: Limits, quality: Quality, latency: Latency | None) -> tuple[Threshold, ...]:
    """Judge each limit that was asked for. A measurement that is not a number never passes.

    Raises:
        RefusedError: a speed-up is asked for but latency was not measured.
    """
    checked = []
    for name, limit, measured in (
        ("max-ppl-ratio", limits.max_ppl_ratio, quality.ppl_ratio),
        ("max-kl", limits.max_kl, quality.kl_nats),
    ):
        if limit is not None:
            checked.append(Threshold(name=name, limit=limit, measured=measured, passed=measured <= limit))
    if limits.min_speedup is not None:
        if latency is None:
            raise RefusedError("--min-speedup needs latency; leave out --no-latency")
        speedup = latency.decode_speedup
        checked.append(
            Threshold(
                name="min-speedup", limit=limits.min_speedup, measured=speedup, passed=speedup >= limits.min_speedup
            )
        )
    return tuple(checked)
