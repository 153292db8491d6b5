"""Small valid inputs of every format that gatenorm reads."""

from __future__ import annotations

import functools

from benchmarks.fuzz.inputs import Seed
from benchmarks.fuzz.seeds.bundles import bundle_seeds
from benchmarks.fuzz.seeds.checkpoints import checkpoint_seeds
from benchmarks.fuzz.seeds.graphs import graph_seeds
from benchmarks.fuzz.seeds.records import record_seeds


@functools.cache
def all_seeds() -> tuple[Seed, ...]:
    """Every seed, made once a process; the same packages make the same bytes."""
    return (*checkpoint_seeds(), *graph_seeds(), *record_seeds(), *bundle_seeds())
