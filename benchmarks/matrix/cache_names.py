"""Which layer a cache tensor belongs to, from its name in any exporter's style."""

from __future__ import annotations

import re

# Layer and what the tensor holds: (3, "key"), (3, "decoder.value").
CacheKey = tuple[int, str]


class CannotRun(Exception):
    """The runtime, or the driver, cannot run a graph; the message says why."""


def of_cross_attention(key: CacheKey) -> bool:
    """Whether a cache tensor holds the encoder's keys or values, which do not grow."""
    return key[1].startswith("encoder")


def cache_key(name: str) -> CacheKey:
    """Layer and part of a cache tensor.

    Raises:
        CannotRun: the name has no number.
    """
    match = re.search(r"^(.*?)(\d+)(\D*)$", name)
    if match is None:
        raise CannotRun(f"{name}: no layer number in the name of a cache tensor")
    before, number, after = match[1], int(match[2]), match[3].strip("._")
    if after:
        return number, after.replace("keys", "key").replace("values", "value")
    before = before.replace("past_key_values", "").replace("key_values", "")
    for part in ("key", "value"):
        if part in before:
            return number, part
    return number // 2, ("key", "value")[number % 2]
