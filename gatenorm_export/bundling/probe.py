"""What every probe shares: a short, fixed question to a graph, asked when it is bundled and when it is verified.

No framework model is needed. That the surgery is right was proved against one when the graph was compared; what can go
wrong later is another runtime, another build of it, or a manifest that names the cache tensors wrongly. So the graph
must answer as it did, and must give the same numbers when it is asked the same in another way: token by token on its
cache instead of at once, or in a padded batch instead of alone.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gatenorm_export.records import BundleGraph, BundleProbe

ANSWER_TOKENS = 8

TOLERANCE, WIDE_TOLERANCE = 1e-3, 5e-2
"""Largest difference of two results as a share of their range: fp32 sums in another order stay far below the first.
Half precision and quantised weights round ten to a hundred times as much; a cache that is mixed up is beyond both."""

_QUANTISED = frozenset({"MatMulNBits", "GatherBlockQuantized", "QMoE"})


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The answer; ``passed`` is false where the graph contradicts itself or what was recorded, as ``finding`` says."""

    probe: BundleProbe
    passed: bool
    finding: str


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one question brought.

    ``rows`` are the numbers that each answer is the largest of, as shares of their result's range. ``difference`` is
    the largest one, as such a share, to what the same question brought when it was asked in the way of ``otherwise``.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    rows: tuple[np.ndarray, ...]
    difference: float
    otherwise: str


def difference_of(values: np.ndarray, other: np.ndarray) -> float:
    """The largest difference as a share of the range; infinite where a number is not finite."""
    if values.shape != other.shape or not (np.isfinite(values).all() and np.isfinite(other).all()):
        return math.inf
    return float(np.abs(values - other).max()) / span_of(values)


def span_of(values: np.ndarray) -> float:
    """Highest less lowest, or 1 where they are all the same."""
    return float(np.ptp(values)) or 1.0


def tolerance_of(graph: BundleGraph) -> float:
    """The share of a result's range that two ways to compute it may differ by."""
    plain = graph.precision == "fp32" and not _QUANTISED & set(graph.contrib_operators)
    return TOLERANCE if plain else WIDE_TOLERANCE


def spread_tokens(length: int, vocabulary: int, avoided: int | None = None) -> list[int]:
    """Tokens without chance, spread over the vocabulary."""
    # A prime stride has no common factor with a vocabulary that is smaller, and reaches every part of a larger one.
    tokens = [(17 + 7919 * index) % vocabulary for index in range(length)]
    return [(token + 1) % vocabulary if token == avoided else token for token in tokens]


def judged(asked: Asked, tolerance: float) -> ProbeResult:
    """Hold an answer against what was computed. Choices whose numbers are closer than the tolerance are a tie."""
    probe = BundleProbe(prompt=asked.prompt, answer=asked.answer)
    if not asked.difference <= tolerance:
        how = f"{asked.difference:.1e} of the range apart, tolerance {tolerance:.0e}"
        return ProbeResult(probe, False, f"{asked.otherwise} it computes something else, or nothing finite: {how}")
    if len(asked.rows) != len(asked.answer):
        return ProbeResult(probe, False, f"it gives {len(asked.rows)} answers, and gave {len(asked.answer)} before")
    for index, (row, choice) in enumerate(zip(asked.rows, asked.answer, strict=True)):
        if not 0 <= choice < len(row) or row.max() - row[choice] > 2 * tolerance:
            finding = f"answer {index + 1} is {int(row.argmax())}, and was {choice} when it was bundled"
            return ProbeResult(probe, False, finding)
    finding = (
        f"{len(asked.answer)} answers as when it was bundled; {asked.otherwise} it differs by {asked.difference:.0e}"
    )
    return ProbeResult(probe, True, f"{finding} of its range, tolerance {tolerance:.0e}")
