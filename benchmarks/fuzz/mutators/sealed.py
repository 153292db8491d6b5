"""A bundle's manifest, changed and sealed anew: a seal is a digest, and whoever changes a file can make one."""

from __future__ import annotations

import hashlib
import random
import re

from benchmarks.fuzz.mutators.json_values import mutate_json

_SEAL = re.compile(rb'"seal": "[^"]*"')


def mutate_sealed(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change values, and most of the time the seal with them."""
    changed, what = mutate_json(rng, data)
    if rng.random() < 0.2:
        return changed, what
    # The seal is over the manifest in which zeros stand in its place.
    opened = _SEAL.sub(b'"seal": "%s"' % (b"0" * 64), changed, count=1)
    seal = hashlib.sha256(opened).hexdigest().encode()
    return _SEAL.sub(b'"seal": "%s"' % seal, changed, count=1), f"{what}, sealed anew"
