"""Protobuf as bytes: lengths, tags and numbers of the encoding lie, at any depth, whatever the message is."""

from __future__ import annotations

import random
from dataclasses import dataclass

_DEEPEST = 6


@dataclass(frozen=True)
class _Field:
    """One field: where its tag and its value begin and end; ``kind`` is the wire type."""

    start: int
    value: int
    end: int
    kind: int


def mutate_wire(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change one field of the encoding."""
    fields = _fields(data, 0, len(data), 0)
    if not fields:
        return data[: len(data) // 2], "cut in half"
    field = rng.choice(fields)
    choice = rng.choice(("length", "number", "tag", "copy", "remove", "nest", "text"))
    body = data[field.value : field.end]
    if choice == "tag":
        new, what = bytes([rng.randrange(256)]) + data[field.start + 1 : field.end], "another tag"
    elif choice == "copy":
        new, what = data[field.start : field.end] * rng.choice((2, 100)), "repeated"
    elif choice == "remove":
        new, what = b"", "left out"
    elif choice == "nest":
        new, what = _nested(rng), "messages in messages"
    elif field.kind == 2:
        length = varint(rng.choice((0, 1, len(body) + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)))
        lie = choice == "length"
        content = b"\xff\xfe\x80" * 3 if choice == "text" else body
        new = data[field.start : field.start + 1] + (length if lie else varint(len(content))) + content
        what = "a lying length" if lie else "not UTF-8"
    else:
        number = rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1))
        new, what = data[field.start : field.start + 1] + varint(number), f"number {number}"
    return data[: field.start] + new + data[field.end :], f"{what} at {field.start}"


def varint(number: int) -> bytes:
    """The encoding of a whole number."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _nested(rng: random.Random) -> bytes:
    """A model's graph > node > attribute > graph > ..., as deep as it gets."""
    content = b""
    for _ in range(rng.choice((10, 40, 400))):
        for tag in (b"\x0a", b"\x2a", b"\x32"):
            content = tag + varint(len(content)) + content
    return b"\x3a" + varint(len(content)) + content


def _fields(data: bytes, start: int, end: int, depth: int) -> list[_Field]:
    found: list[_Field] = []
    at = start
    while at < end:
        tag, value = _number(data, at, end)
        kind = tag & 7
        if value > end or kind not in {0, 1, 2, 5} or tag >> 3 == 0:
            return []
        if kind == 2:
            length, value = _number(data, value, end)
            stop = value + length
        elif kind == 0:
            _, stop = _number(data, value, end)
        else:
            stop = value + (8 if kind == 1 else 4)
        if stop > end:
            return []
        found.append(_Field(at, value, stop, kind))
        if kind == 2 and depth < _DEEPEST and 2 < stop - value < 1_000_000:
            found += _fields(data, value, stop, depth + 1)
        at = stop
    return found


def _number(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7
    return 0, end + 1
