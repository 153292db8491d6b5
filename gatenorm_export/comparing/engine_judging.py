"""How far an engine may be from its graph, and whether it is further."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from gatenorm_export.records import EngineArtifact, OutputAccuracy, WorstElement

RELATIVE = 1e-4
"""Largest error of fp32 as a share of an output's range, as for faithfulness; no tolerance is smaller."""

SLACK = 4.0
"""How many times the error that was recorded for the conversion an engine may have: it was measured on other tokens,
and with sums in float32, where kernels add in an order of their own."""

ROUNDINGS = 16
"""Of a graph that was in half precision already no conversion was measured: so many units of roundoff."""

_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Shares of an output's range, by output; ``every`` is that of all others, None where nothing is known."""

    every: float | None
    by_output: Mapping[str, float]
    words: str

    def of(self, output: str) -> float | None:
        """The share for one output."""
        return self.by_output.get(output, self.every)


def tolerance_of(record: EngineArtifact) -> Tolerance:
    """What an engine's precision may cost, from the record of its build."""
    check = record.prepared.check if record.prepared is not None else None
    if check is not None:
        shares = {entry.output: max(RELATIVE, SLACK * entry.relative) for entry in check.outputs}
        return Tolerance(
            every=shares.get("cache", max(shares.values(), default=RELATIVE)),
            by_output=shares,
            words=f"{SLACK:g} times the error that the build measured for lowering and {record.precision} alone, at "
            f"least {RELATIVE:.0e} of the output's range",
        )
    if record.precision == "fp32":
        return Tolerance(RELATIVE, {}, f"fp32: {RELATIVE:.0e} of the output's range")
    if record.prepared is None and record.precision in _ROUNDOFF:
        share = ROUNDINGS * _ROUNDOFF[record.precision]
        return Tolerance(
            share, {}, f"the graph is in {record.precision} itself: {ROUNDINGS} roundings, {share:.1%} of the range"
        )
    why = record.prepared.unmeasured if record.prepared is not None else "the graph is quantised itself"
    return Tolerance(None, {}, f"none: the build measured no error of {record.precision} to expect ({why})")


def span_of(arrays: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[float, float]:
    """Highest less lowest, and largest, of the reference's visible numbers."""
    seen = [array[np.broadcast_to(mask, array.shape)] for array, mask in zip(arrays, masks, strict=True)]
    numbers = np.concatenate([part for part in seen if part.size] or [np.zeros(1, np.float32)])
    return float(np.ptp(numbers)), float(np.abs(numbers).max())


def limit_of(share: float | None, span: float, largest: float) -> float | None:
    """The absolute tolerance; an output that never changes has its size for a range."""
    return None if share is None else share * (span or largest or 1.0)


def judge(
    output: str,
    names: tuple[str, ...],
    expected: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
    agreed: Sequence[bool],
    span: float,
    limit: float | None,
) -> OutputAccuracy:
    """One output over all steps. A NaN is the worst there can be; polygraphy's verdict and ours have both to hold."""
    worst: WorstElement | None = None
    largest = -1.0
    for name, wanted, found in zip(names, expected, got, strict=True):
        if wanted.shape != found.shape:
            missing = found.shape == ()
            what = "it is missing" if missing else f"{list(found.shape)} where the graph has {list(wanted.shape)}"
            return OutputAccuracy(
                output=output,
                max_abs_error=math.inf,
                range=span,
                tolerance=limit,
                worst=None,
                passed=False,
                note=f"{name}: {what}",
            )
        error = np.abs(wanted.astype(np.float64) - found)
        error[~np.isfinite(error)] = np.inf
        place = np.unravel_index(int(np.argmax(error)), error.shape) if error.size else ()
        if error.size and float(error[place]) > largest:
            largest = float(error[place])
            index = tuple(int(axis) for axis in place)
            worst = WorstElement(step=name, index=index, expected=float(wanted[place]), got=float(found[place]))
    passed = all(agreed) and worst is not None and limit is not None and largest <= limit
    # Without a tolerance only what is not finite is known to be wrong.
    unknown = limit is None and math.isfinite(largest)
    return OutputAccuracy(
        output=output,
        max_abs_error=largest,
        range=span,
        tolerance=limit,
        worst=worst,
        passed=None if unknown else passed,
    )


def summary_of(names: tuple[str, ...], outputs: tuple[OutputAccuracy, ...]) -> tuple[bool | None, str]:
    """All outputs together, and a sentence that names the worst element."""
    worst = max(outputs, key=lambda entry: (entry.passed is False, entry.share))
    failed = [entry for entry in outputs if entry.passed is False]
    over = f"{len(outputs)} outputs over {len(names)} steps"
    where = worst.note
    if worst.worst is not None:
        element = worst.worst
        where = (
            f"{element.got:.6g} where the graph has {element.expected:.6g}, at {list(element.index)} in {element.step}"
        )
    if failed:
        limit = f", tolerance {worst.tolerance:.1e}" if worst.tolerance is not None else ""
        return False, (
            f"FAILED: {len(failed)} of {over} are not what the graph computes; the worst is {worst.output}: {where}"
            f"{limit}"
        )
    if any(entry.passed is None for entry in outputs):
        return None, f"not judged: no tolerance is known; the worst of {over} is {worst.output}: {where}"
    return True, (
        f"passed: {over}; the nearest to its tolerance is {worst.output} with an error of {worst.max_abs_error:.1e} of "
        f"{worst.tolerance:.1e}"
    )
