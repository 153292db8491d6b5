"""How far an engine may be from its graph, and whether it is further."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from gatenorm_export.precision import Arithmetic
from gatenorm_export.records import EngineArtifact, OutputAccuracy, WorstElement

RELATIVE = 1e-4
"""Largest error of fp32 as a share of an output's range, as for faithfulness; no tolerance is smaller."""

SLACK = 4.0
"""How many times the error that was recorded for the conversion an engine may have: it was measured on other tokens,
and with sums in float32, where kernels add in an order of their own."""

ROUNDINGS = 16
"""Where no conversion to half precision was measured, as of a graph that is in it: so many units of roundoff."""

QUANTISED = 0.25
"""Of a graph that rounds its activations to few bits: where two ways to compute one fall on either side of a step, it
moves by the whole step, and with it all that follows. Of a decoder of 16 layers in fp8 the outputs moved by up to 20 %
of their range, whether what was rounded moved by 1e-4 or by 4e-3; other weights move them by about the whole range."""

_STEPS = ", since activations are rounded to few bits"
_PLAIN = ("fp32", "fp16", "bf16")
_ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Shares of an output's range, by output; ``every`` is that of all others."""

    every: float
    by_output: Mapping[str, float]
    words: str

    def of(self, output: str) -> float:
        """The share for one output."""
        return self.by_output.get(output, self.every)


def tolerance_of(record: EngineArtifact, arithmetic: Arithmetic) -> Tolerance:
    """What an engine's precision may cost, from the record of its build and what its graph computes in."""
    check = record.prepared.check if record.prepared is not None else None
    if check is not None:
        least = QUANTISED if arithmetic.quantised else RELATIVE
        shares = {entry.output: max(least, SLACK * entry.relative) for entry in check.outputs}
        return Tolerance(
            every=shares.get("cache", max(shares.values(), default=least)),
            by_output=shares,
            words=f"{SLACK:g} times the error that the build measured for lowering and {record.precision} alone, at "
            f"least {_share(least)} of the output's range" + (_STEPS if arithmetic.quantised else ""),
        )
    # Weights of few bits are the same numbers in the engine: what computes with them decides.
    kind = record.precision if record.precision in _PLAIN else arithmetic.activations
    name = kind if kind == record.precision else f"{record.precision} with activations in {kind}"
    unmeasured = record.prepared.unmeasured if record.prepared is not None else None
    why = f" (the build measured none: {unmeasured})" if unmeasured else ""
    if arithmetic.quantised or arithmetic.packed_rounds:
        return Tolerance(QUANTISED, {}, f"{name}: {_share(QUANTISED)} of the output's range{_STEPS}{why}")
    if kind in _ROUNDOFF:
        share = ROUNDINGS * _ROUNDOFF[kind]
        return Tolerance(share, {}, f"{name}: {ROUNDINGS} roundings, {_share(share)} of the output's range{why}")
    return Tolerance(RELATIVE, {}, f"{name}: {_share(RELATIVE)} of the output's range{why}")


def _share(share: float) -> str:
    return f"{share:.0e}" if share < 1e-3 else f"{share:.1%}"


def span_of(arrays: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[float, float]:
    """Highest less lowest, and largest, of the reference's visible numbers."""
    seen = [array[np.broadcast_to(mask, array.shape)] for array, mask in zip(arrays, masks, strict=True)]
    numbers = np.concatenate([part for part in seen if part.size] or [np.zeros(1, np.float32)])
    return float(np.ptp(numbers)), float(np.abs(numbers).max())


def limit_of(share: float, span: float, largest: float) -> float:
    """The absolute tolerance; an output that never changes has its size for a range."""
    return share * (span or largest or 1.0)


def judge(
    output: str,
    names: tuple[str, ...],
    expected: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
    agreed: Sequence[bool],
    span: float,
    limit: float,
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
    passed = all(agreed) and worst is not None and largest <= limit
    return OutputAccuracy(
        output=output,
        max_abs_error=largest,
        range=span,
        tolerance=limit,
        worst=worst,
        passed=passed,
    )


def summary_of(names: tuple[str, ...], outputs: tuple[OutputAccuracy, ...]) -> tuple[bool, str]:
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
    return True, (
        f"passed: {over}; the nearest to its tolerance is {worst.output} with an error of {worst.max_abs_error:.1e} of "
        f"{worst.tolerance:.1e}"
    )
