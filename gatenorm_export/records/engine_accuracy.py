"""Does an engine compute what its graph computes? Every output, with tolerance, worst element and a truth value."""

from __future__ import annotations

import math
from typing import Literal

from gatenorm_export.records.base import Part
from gatenorm_export.records.prepared import ConversionCheck, Precision


class WorstElement(Part):
    """The element that is furthest from the reference: where it is, and both values."""

    step: str
    index: tuple[int, ...]
    expected: float
    got: float


class OutputAccuracy(Part):
    """One output over all steps.

    ``range`` is the distance from the lowest to the highest number of the reference's; ``tolerance`` is absolute, None
    where nothing tells what to expect. ``worst`` is None where there is nothing to compare, and ``note`` says why.
    """

    output: str
    max_abs_error: float
    range: float
    tolerance: float | None
    worst: WorstElement | None
    passed: bool | None
    note: str = ""

    @property
    def share(self) -> float:
        """The error as a share of the tolerance, or of the range where there is none; infinite where not finite."""
        scale = self.tolerance or self.range or 1.0
        return self.max_abs_error / scale if math.isfinite(self.max_abs_error) else math.inf


class EngineAccuracy(Part):
    """One engine against the graph that it was built from, both with a cache of their own.

    ``passed`` is None where it was not run or could not be judged; ``reason`` says why, and otherwise what was found.
    ``tolerance_from`` says in words where the tolerances come from; ``relative`` are those of the graph's conversion,
    which is the error that the precision alone may make and has nothing to do with pruning.
    """

    role: Literal["unpruned", "pruned"]
    engine: str
    engine_sha256: str
    graph_sha256: str
    flavour: str
    precision: Precision
    device: str
    reference: str
    steps: tuple[str, ...] = ()
    outputs: tuple[OutputAccuracy, ...] = ()
    tolerance_from: str = ""
    conversion: ConversionCheck | None = None
    conversion_unmeasured: str = ""
    passed: bool | None
    reason: str

    @property
    def worst(self) -> OutputAccuracy | None:
        """The output that comes nearest to its tolerance, or is furthest beyond it."""
        return max(self.outputs, key=lambda entry: (entry.passed is False, entry.share), default=None)
