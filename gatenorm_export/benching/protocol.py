"""What a backend must offer so that two models can be timed on it.

A *model* is one loaded graph, engine or framework model with its cache on the device. Everything that a timed call
needs is put on the device by ``prepare``; inside ``prefill`` and ``decode`` nothing is copied from or to the host. A
*backend* knows the device and opens the two sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from gatenorm_export.records.bench import BenchDevice, Phase, Probe, Work, row_name

STEPS = 16
"""Decode steps that are timed before the cache is taken back: so many tokens longer than asked it gets at most."""

LOADINGS = 4
"""On the CPU, where each loading's pages lie elsewhere. A GPU's memory comes in pages of 2 MB; 2 are enough there."""


@dataclasses.dataclass(frozen=True)
class Point:
    """What is timed: a phase, how many sequences at once, and their length (decode: of the cache) in tokens."""

    phase: Phase
    batch: int
    sequence: int

    @property
    def tokens(self) -> int:
        """Tokens that one call handles."""
        return self.batch * (self.sequence if self.phase == "prefill" else 1)

    @property
    def name(self) -> str:
        """The point in words."""
        return row_name(self.phase, self.batch, self.sequence)


class BenchModel(Protocol):
    """One loaded model. ``notes`` are what a reader of its figures should know."""

    notes: tuple[str, ...]

    def refuses(self, point: Point) -> str | None:
        """Why the model cannot be run at a point, such as an engine's profile; None where it can."""

    def prepare(self, tokens: np.ndarray, steps: int) -> None:
        """Put on the device what a prefill of ``tokens`` int64 [batch, sequence] and ``steps`` decode steps need."""

    def prefill(self) -> None:
        """Run the prepared tokens from an empty cache; the cache they leave stays on the device."""

    def decode(self) -> None:
        """Run one more token for each sequence; the cache that the call before left is its past."""

    def rewind(self) -> None:
        """Take the cache back to what the prefill left."""

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds that ``call`` takes on the device, by its own clock where it has one."""

    def synchronise(self) -> None:
        """Wait for everything that was started."""

    def kv_bytes(self) -> int:
        """Bytes of all cache tensors as they are now; 0 without a cache."""

    def close(self) -> None:
        """Free the model and everything it has on the device."""


class Memory(Protocol):
    """Whose memory is counted."""

    def available(self) -> int | None:
        """Bytes that can still be taken; None where the machine does not tell."""

    def begin(self) -> None:
        """Start counting from what is in use now."""

    def peak(self) -> int | None:
        """The most that was in use at once since ``begin``, over what was in use then; None where it is not told."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes that a prefill takes beside weights and cache, and that are free again after it; estimates from below.

    ``scores_per_pair`` are those of one query with one key, all heads of one layer together; 0 where attention is
    fused and stores none.
    """

    logits_per_token: int = 0
    activations_per_token: int = 0
    scores_per_pair: int = 0


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two models before it is loaded.

    ``cached`` says whether it keeps a cache, or could: a model from which all attention is gone decodes without one.
    ``work`` is None where the roofline is not known, ``why_no_work`` says why.
    """

    path: str
    sha256: str | None
    file_bytes: int
    load: Callable[[], BenchModel]
    cached: bool
    work: Work | None
    why_no_work: str = ""
    kv_bytes_per_token: int = 0
    """An estimate, like ``footprint`` for deciding what memory holds."""
    footprint: Footprint = Footprint()


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sides that belong together: their lineage is checked."""

    base: Side
    pruned: Side
    n_layers: int
    dropped: tuple[int, ...]
    plan_sha256: str | None
    longest: int | None = None
    """The context that the model's config names, in tokens; a default length never passes it."""
    notes: tuple[str, ...] = ()
    table_of_positions: int | None = None
    """How many positions the model has where they are a table; nothing runs beyond."""


class Backend(Protocol):
    """One runtime on one device."""

    device: BenchDevice
    memory: Memory
    weight_copies: float
    """How many times the size of its file a model takes when it is loaded, at most."""
    sequences: tuple[int, ...]
    """The lengths that are measured when none are asked for."""
    loadings: int
    """How often both are loaded where they take turns, the one or the other first: 2 or ``LOADINGS``."""

    def open(self, base: Path, pruned: Path) -> Pair:
        """Check that the two belong together, and prepare to load them.

        Raises:
            InputError: one is missing, damaged, or nothing that this backend runs.
            RefusedError: swapped, or of different parents.
        """

    def control(self, native: Path, pair: Pair) -> Side:
        """A model made without those layers, to hold the pruned one against."""

    def probe(self, like: Work) -> Probe:
        """Measure the device's bandwidth and rate of multiplication, on matrices about as large as the model's."""
