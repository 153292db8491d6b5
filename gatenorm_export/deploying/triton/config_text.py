"""Model configurations as Triton reads them: protobuf's text format. Pure, and without protobuf."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

Value = str | bool | int | Mapping[str, "Value"] | Sequence["Value"]
"""A mapping is a message, a sequence a repeated field."""


class Word(str):
    """An enum's value, which is written without quotes."""

    __slots__ = ()


def config_text(fields: Mapping[str, Value]) -> str:
    """``fields`` as text, in their order; ends in a newline."""
    return "\n".join(_lines(fields, "")) + "\n"


def _lines(fields: Mapping[str, Value], indent: str) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _message(name, value, indent)
        elif isinstance(value, str | int):
            yield f"{indent}{name}: {_scalar(value)}"
        elif any(isinstance(item, Mapping) for item in value):
            for item in value:
                assert isinstance(item, Mapping)
                yield from _message(name, item, indent)
        else:
            yield f"{indent}{name}: [{', '.join(_scalar(item) for item in value)}]"


def _message(name: str, fields: Mapping[str, Value], indent: str) -> Iterator[str]:
    if not fields:
        yield f"{indent}{name} {{}}"
        return
    yield f"{indent}{name} {{"
    yield from _lines(fields, indent + "  ")
    yield f"{indent}}}"


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return str(value)
    assert isinstance(value, str | int)
    # JSON's escapes of quotes, backslashes and control characters are protobuf's too.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
