"""Mutations that know nothing of the format."""

from __future__ import annotations

import random


def mutate_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Flip bits, cut, repeat, or overwrite a stretch."""
    choice = rng.choice((_flip, _flip, _cut, _repeat, _overwrite, _insert, _remove, _nothing))
    return choice(rng, data)


def _place(rng: random.Random, data: bytes) -> int:
    # Headers come first, so half of all places are among the first bytes.
    end = len(data) if rng.random() < 0.5 else min(len(data), 256)
    return rng.randrange(end) if end else 0


def _flip(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    changed, places = bytearray(data), []
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            place = _place(rng, data)
            changed[place] ^= 1 << rng.randrange(8)
            places.append(place)
    return bytes(changed), f"bits flipped at {places[:4]}"


def _cut(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    end = _place(rng, data)
    return data[:end], f"cut to {end} bytes"


def _repeat(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    start = _place(rng, data)
    length = rng.choice((1, 8, 64, 4096))
    return data[: start + length] + data[start:], f"{length} bytes repeated at {start}"


def _overwrite(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    start, length = _place(rng, data), rng.choice((1, 2, 4, 8, 64))
    filler = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
    return data[:start] + filler + data[start + length :], f"{length} bytes of {filler[:1].hex()} at {start}"


def _insert(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    start, length = _place(rng, data), rng.choice((1, 4, 100, 5000))
    return data[:start] + rng.randbytes(length) + data[start:], f"{length} bytes put in at {start}"


def _remove(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    start, length = _place(rng, data), rng.choice((1, 4, 100))
    return data[:start] + data[start + length :], f"{length} bytes taken out at {start}"


def _nothing(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    return rng.choice((b"", b"\0" * 100, b"PK\x03\x04", b"GGUF", b"{}", b"[]", b"null", b"\xff\xfe")), "replaced whole"
