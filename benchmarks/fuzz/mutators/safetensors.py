"""Safetensors: the header's length, its JSON, and the data behind it, each lying about the others."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.fuzz.mutators.json_values import encode, mutate_value
from benchmarks.fuzz.mutators.numbers import integer, packed
from benchmarks.fuzz.mutators.plain_bytes import mutate_bytes

_TYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "I64",
    "I8",
    "U8",
    "BOOL",
    "C64",
)


def mutate_safetensors(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """One lie of the format, or one that any file can tell."""
    return rng.choice((_length, _header, _header, _entry, _entry, _data, mutate_bytes))(rng, data)


def _parts(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, OverflowError, RecursionError):
        # An edit before this one may have nested it without end.
        return None
    return (header, data[8 + length :]) if isinstance(header, dict) else None


def _joined(header: Any, body: bytes) -> bytes:
    text = encode(header)
    return len(text).to_bytes(8, "little") + text + body


def _length(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    lie = packed(rng, "Q")
    return lie + data[8:], f"header of {int.from_bytes(lie, 'little')} bytes"


def _header(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    parts = _parts(data)
    if parts is None:
        return mutate_bytes(rng, data)
    header, what = mutate_value(rng, parts[0])
    return _joined(header, parts[1]), f"header: {what}"


def _entry(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    parts = _parts(data)
    names = [name for name in parts[0] if name != "__metadata__"] if parts else []
    if parts is None or not names:
        return mutate_bytes(rng, data)
    header, body = parts
    name = rng.choice(names)
    entry = header[name]
    if not isinstance(entry, dict):
        return mutate_bytes(rng, data)
    which = rng.choice(("dtype", "shape", "offsets", "consistent", "swapped"))
    if which == "dtype":
        entry["dtype"] = rng.choice(_TYPES)
    elif which == "shape":
        entry["shape"] = [integer(rng) for _ in range(rng.choice((0, 1, 2, 3, 40)))]
    elif which == "offsets":
        entry["data_offsets"] = [integer(rng) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
    elif which == "consistent":
        # Sizes that agree with each other and with nothing else: zero elements, one dimension, a transposed tensor.
        shape = entry.get("shape")
        flat = [*reversed(shape)] if isinstance(shape, list) else []
        entry["shape"] = rng.choice((flat, [1, *flat], [*flat, 1]))
    else:
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    return _joined(header, body), f"entry {name[:60]}: {which}"


def _data(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    parts = _parts(data)
    if parts is None or not parts[1]:
        return mutate_bytes(rng, data)
    filler = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80", b"\x7c"))
    return _joined(parts[0], filler * len(parts[1])), f"all data is {filler.hex()}"
