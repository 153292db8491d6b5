"""GGUF: every count, length, type, dimension and offset of the header is found and may lie."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.fuzz.mutators.numbers import packed, text
from benchmarks.fuzz.mutators.plain_bytes import mutate_bytes

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class _Spot:
    """A number of the header, or with code "s" the bytes of a text behind its length."""

    at: int
    code: str
    what: str
    length: int = 0


def mutate_gguf(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Overwrite numbers or texts of the header, or change the file as any other."""
    try:
        spots = list(_spots(data))
    except (struct.error, KeyError, IndexError):
        spots = []
    if not spots or rng.random() < 0.15:
        return mutate_bytes(rng, data)
    done = []
    # From behind, so that a text of another length moves nothing that is still to be changed.
    for spot in sorted(rng.sample(spots, min(len(spots), rng.choice((1, 1, 1, 2, 4)))), key=lambda spot: -spot.at):
        if spot.code == "s":
            content = text(rng).encode("utf-8", "surrogatepass")
            new = struct.pack("<Q", len(content)) + content
            data = data[: spot.at - 8] + new + data[spot.at + spot.length :]
        else:
            new = packed(rng, spot.code) if rng.random() < 0.6 else struct.pack("<Q", rng.randrange(45))
            width = struct.calcsize("<" + spot.code)
            data = data[: spot.at] + new[:width] + data[spot.at + width :]
        done.append(f"{spot.what} at {spot.at}")
    return data, ", ".join(done)


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def spot(self, code: str, what: str) -> tuple[_Spot, int]:
        at, width = self.at, struct.calcsize("<" + code)
        value = struct.unpack("<" + code, self.data[at : at + width])[0]
        self.at += width
        return _Spot(at, code, what), int(value) if code not in "fd" else 0

    def text(self, what: str) -> Iterator[_Spot]:
        spot, length = self.spot("Q", f"length of {what}")
        yield spot
        yield _Spot(self.at, "s", what, length)
        self.at += length


def _spots(data: bytes) -> Iterator[_Spot]:
    cursor = _Cursor(data)
    cursor.at = 4
    counts = []
    for what, code in (("version", "I"), ("number of tensors", "Q"), ("number of fields", "Q")):
        spot, value = cursor.spot(code, what)
        counts.append(value)
        yield spot
    for _ in range(counts[2]):
        yield from cursor.text("key")
        spot, kind = cursor.spot("I", "type of a field")
        yield spot
        yield from _value(cursor, kind)
    for _ in range(counts[1]):
        yield from cursor.text("name of a tensor")
        spot, rank = cursor.spot("I", "rank")
        yield spot
        for _ in range(rank):
            yield cursor.spot("Q", "dimension")[0]
        yield cursor.spot("I", "type of a tensor")[0]
        yield cursor.spot("Q", "offset")[0]


def _value(cursor: _Cursor, kind: int) -> Iterator[_Spot]:
    if kind == _STRING:
        yield from cursor.text("text of a field")
    elif kind == _ARRAY:
        spot, inner = cursor.spot("I", "type of a list")
        yield spot
        spot, count = cursor.spot("Q", "count of a list")
        yield spot
        for _ in range(count):
            yield from _value(cursor, inner)
    else:
        yield cursor.spot(_SCALARS[kind], "value of a field")[0]
