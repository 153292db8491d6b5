"""The inputs of a run: number N of seed S is the same input wherever and whenever it is made."""

from __future__ import annotations

import random

from benchmarks.fuzz.inputs import Input, Seed
from benchmarks.fuzz.mutators import MUTATORS
from benchmarks.fuzz.mutators.folders import mutate_folder


def make_case(run_seed: int, number: int, seeds: tuple[Seed, ...]) -> Input:
    """Input ``number`` of the run with ``run_seed``; seeds take turns, so that every format gets its share."""
    rng = random.Random(f"{run_seed}:{number}")
    seed = seeds[number % len(seeds)]
    made = Input(seed=seed.name, target=rng.choice(seed.targets), files=dict(seed.files))
    if rng.random() < 0.08:
        made.edits.append(mutate_folder(rng, made, seed.named))
    if not made.edits or rng.random() < 0.1:
        for _ in range(rng.choice((1, 1, 1, 2)) if made.files else 0):
            name = rng.choice([name for name in seed.kinds if name in made.files] or list(made.files))
            made.files[name], what = MUTATORS[seed.kinds.get(name, "bytes")](rng, made.files[name])
            made.edits.append(f"{name}: {what}")
    return made
