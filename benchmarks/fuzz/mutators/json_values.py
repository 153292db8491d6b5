"""JSON: any value of any field becomes something else, and the text becomes what no writer would write."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.fuzz.mutators.numbers import integer, text
from benchmarks.fuzz.mutators.plain_bytes import mutate_bytes

# A value that the encoder cannot write stands as one of these until the text is there.
_RAW: dict[str, str] = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "nested 900": "[" * 900 + "]" * 900,
    "digits": "9" * 5000,
    "almost too many digits": "9" * 4300,
    "exponent": "1e400",
    "tiny": "1e-400",
    "long fraction": "0." + "1" * 5000,
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "surrogate": '"\\ud800"',
    "twice": '{"a": 1, "a": 2}',
    "unclosed": '{"a": ',
    "many": "[" + "0," * 200_000 + "0]",
}


def mutate_json(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change one to three values of a JSON text, or the text itself."""
    if rng.random() < 0.1:
        return mutate_bytes(rng, data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value, what = mutate_value(rng, value)
        done.append(what)
    return encode(value), ", ".join(done)


def encode(value: Any) -> bytes:
    """The text of a value, raw parts in their places."""
    found = json.dumps(value)
    for name, raw in _RAW.items():
        found = found.replace(json.dumps(f"@{name}@"), raw)
    return found.encode("utf-8", "surrogatepass")


def mutate_value(rng: random.Random, value: Any) -> tuple[Any, str]:
    """The value with one part changed."""
    places = list(_places(value))
    path = rng.choice(places) if places else ()
    if not path:
        hostile, what = _hostile(rng, value)
        return hostile, f"everything is {what}"
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    where = ".".join(map(str, path))
    return value, f"{where[:80]}: {_change(rng, parent, path[-1])}"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _places(item, (*path, key))


def _change(rng: random.Random, parent: Any, key: Any) -> str:
    roll = rng.random()
    if roll < 0.12:
        del parent[key]
        return "left out"
    if roll < 0.2 and isinstance(parent, dict):
        parent[text(rng)] = parent.pop(key)
        return "renamed"
    if roll < 0.24 and isinstance(parent, dict):
        parent[text(rng)] = _hostile(rng, None)[0]
        return "one more beside it"
    if roll < 0.3 and isinstance(parent, list):
        parent.extend([parent[key]] * rng.choice((1, 3, 1000)))
        return "repeated"
    if roll < 0.36 and isinstance(parent, dict):
        # Two fields of one object change places.
        other = rng.choice(list(parent))
        parent[key], parent[other] = parent[other], parent[key]
        return f"changed for {str(other)[:40]}"
    parent[key], what = _hostile(rng, parent[key])
    return what


def _hostile(rng: random.Random, value: Any) -> tuple[Any, str]:
    roll = rng.random()
    if roll < 0.25 or (roll < 0.5 and type(value) is int):
        found: Any = integer(rng)
        return found, f"{found}"
    if roll < 0.5:
        found = text(rng)
        return found, f"text {found[:30]!r}"
    if roll < 0.7:
        name = rng.choice(list(_RAW))
        return f"@{name}@", name
    if roll < 0.75 and isinstance(value, str) and value:
        found = value.swapcase() if rng.random() < 0.5 else value[: len(value) // 2]
        return found, f"text {found[:30]!r}"
    found = rng.choice(
        (None, True, False, [], {}, [[]], {"a": {}}, 0.5, -0.5, 1e308, [value], {"a": value}, [value] * 3)
    )
    return found, f"{type(found).__name__}"
