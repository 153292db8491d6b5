"""The limits that make a comparison fail a pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gatenorm_export.errors import RefusedError, UsageError
from gatenorm_export.records import AnyQuality, Latency, Threshold


@dataclasses.dataclass(frozen=True)
class Limits:
    """What must hold; None asks nothing.

    ``min_speedup`` is of decode, pruned over unpruned; of a model that is no decoder, of its forward pass.
    """

    max_ppl_ratio: float | None = None
    min_speedup: float | None = None
    max_kl: float | None = None
    min_cosine: float | None = None
    min_agreement: float | None = None


_Figure = Callable[[Any], float | None]

_LIMITS: dict[str, tuple[str, dict[str, _Figure]]] = {
    "max-ppl-ratio": ("max_ppl_ratio", {"text": lambda quality: quality.ppl_ratio}),
    "max-kl": (
        "max_kl",
        {measure: lambda quality: quality.kl_nats for measure in ("text", "classes", "transcript")},
    ),
    "min-cosine": ("min_cosine", {"embeddings": lambda quality: quality.mean_cosine}),
    "min-agreement": (
        "min_agreement",
        {
            "text": lambda quality: quality.top1_agreement,
            "classes": lambda quality: quality.top1_agreement,
            "scores": lambda quality: quality.spearman_rho,
            "labels": lambda quality: quality.common_labels,
            # A transcript can have more errors than tokens.
            "transcript": lambda quality: max(0.0, 1.0 - quality.token_error_rate),
        },
    ),
}
"""Name of a limit -> its field, and by measure the figure that it bounds; a measure that is not there has none."""


def refuse_limits(limits: Limits, measure: str) -> None:
    """Refuse, by name, a limit on a figure that is not measured for this kind of model.

    Raises:
        RefusedError: there is one; the text names those that can be asked for.
    """
    for name, (field, figures) in _LIMITS.items():
        if getattr(limits, field) is not None and measure not in figures:
            fitting = ", ".join(f"--{other}" for other, (_, found) in _LIMITS.items() if measure in found)
            raise RefusedError(f"--{name} does not apply to a model that is judged by {measure}; use {fitting}")


def check_limits(limits: Limits, quality: AnyQuality, latency: Latency | None) -> tuple[Threshold, ...]:
    """Judge each limit that was asked for. A measurement that is not a number never passes.

    Raises:
        RefusedError: a limit does not apply to this measure, or the figure that it bounds is not defined here.
        UsageError: a speed-up is asked for but latency was not measured.
    """
    refuse_limits(limits, quality.measure)
    checked = []
    for name, (field, figures) in _LIMITS.items():
        limit = getattr(limits, field)
        if limit is not None:
            measured = figures[quality.measure](quality)
            if measured is None:
                raise RefusedError(
                    f"--{name}: on {quality.text} neither model gives a label, so that nothing can be held against the "
                    "limit; name something that gets labels"
                )
            passed = measured <= limit if name.startswith("max") else measured >= limit
            checked.append(Threshold(name=name, limit=limit, measured=measured, passed=passed))
    if limits.min_speedup is not None:
        if latency is None:
            raise UsageError("--min-speedup needs latency; leave out --no-latency")
        _, speedup, _, _ = latency.main
        checked.append(
            Threshold(
                name="min-speedup", limit=limits.min_speedup, measured=speedup, passed=speedup >= limits.min_speedup
            )
        )
    return tuple(checked)
