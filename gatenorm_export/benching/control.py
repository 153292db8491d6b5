"""The control: is a pruned model as fast as one that never had those layers?"""

from __future__ import annotations

import numpy as np

from gatenorm_export.benching.measuring import Measured
from gatenorm_export.benching.protocol import Side
from gatenorm_export.benching.statistics import speedup_of, timing_of
from gatenorm_export.errors import RefusedError
from gatenorm_export.records.bench import Control, ControlRow, Work

TOLERANCE = 0.02
"""Two sessions of one and the same graph differ by less than this; what surgery had left behind would cost more."""

_COUNTED = {
    "weight_bytes": "bytes of weights that are multiplied with",
    "flops_per_token": "operations per token",
    "n_attention": "attention sublayers",
    "attention_flops_per_pair": "operations of attention per query and key",
    "kv_bytes_per_token": "bytes of cache per token",
}


def hold_against(measured: Measured, native: Side, pruned: Side) -> Control:
    """What was measured of (native, pruned) as a control: in structure, and in time.

    Raises:
        RefusedError: no point could be measured.
    """
    if not measured.seconds:
        raise RefusedError(f"{native.path}: the control could not be measured at any point")
    rows = []
    for point, seconds in measured.seconds.items():
        ratio, low, high = speedup_of(seconds, order=measured.order)
        together = np.concatenate(seconds, axis=1)
        rows.append(
            ControlRow(
                phase=point.phase,
                batch=point.batch,
                sequence=point.sequence,
                native=timing_of(together[0], point.tokens),
                pruned=timing_of(together[1], point.tokens),
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
            )
        )
    ratio, low, high = speedup_of(*measured.seconds.values(), order=measured.order)
    differences = structure_differences(native.work, pruned.work)
    passed = within(low, high, TOLERANCE) if not differences else False
    return Control(
        native=native.path,
        native_sha256=native.sha256,
        tolerance=TOLERANCE,
        rows=tuple(rows),
        differences=differences,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        passed=passed,
        sentence=_sentence(passed, (ratio, low, high), differences),
    )


def within(low: float, high: float, tolerance: float) -> bool | None:
    """Whether native over pruned time is 1 but for ``tolerance``; None where only a part of the interval lies there.

    A pruned model that is faster than the native one does not pass either: the two are not what a control compares.
    """
    least, most = 1 - tolerance, 1 + tolerance
    return True if least <= low and high <= most else False if high < least or low > most else None


def structure_differences(native: Work | None, pruned: Work | None) -> tuple[str, ...]:
    """Every count in which the two differ, in words; none where one cannot be counted."""
    if native is None or pruned is None:
        return ()
    return tuple(
        f"{getattr(pruned, field):,} instead of {getattr(native, field):,} {words}"
        for field, words in _COUNTED.items()
        if getattr(native, field) != getattr(pruned, field)
    )


def _sentence(passed: bool | None, ratio: tuple[float, float, float], differences: tuple[str, ...]) -> str:
    middle, low, high = ratio
    figure = f"native over pruned time {middle:.3f} ({low:.3f} to {high:.3f})"
    if differences:
        return f"the pruned model is not what a native one is: {'; '.join(differences)}; {figure}"
    if passed is None:
        return (
            f"whether the pruned model is within {TOLERANCE:.0%} of the native one is not decided: {figure}; measure "
            "more, with --repeats or --max-minutes, on a machine that does nothing else"
        )
    word = "is within" if passed else "is slower by more than" if middle < 1 else "is faster by more than"
    return f"the pruned model {word} {TOLERANCE:.0%} of one without those layers from the start: {figure}"
