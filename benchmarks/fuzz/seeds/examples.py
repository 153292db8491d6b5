"""A valid value of any record, from the types of its fields: new records and fields are fuzzed without being named."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel

_PLAIN: dict[Any, Any] = {str: "a", int: 1, float: 1.0, bool: True, type(None): None, Any: "a"}


def example(kind: type[BaseModel], **fields: Any) -> Any:
    """A record of ``kind``; ``fields`` take the place of what would be made up."""
    made = {
        name: _value(field.annotation)
        for name, field in kind.model_fields.items()
        if name not in fields and name not in {"schema_version", "kind", "versions"}
    }
    return kind(**{**made, **fields})


def _value(annotation: Any) -> Any:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _value(arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    if origin in {typing.Union, types.UnionType}:
        # The richest form: an object where there may be one.
        return _value(next((one for one in arguments if one is not type(None)), arguments[0]))
    if origin is tuple:
        return (_value(arguments[0]),) if arguments[1:] == (...,) else tuple(map(_value, arguments))
    if origin is dict:
        return {_value(arguments[0]): _value(arguments[1])}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return example(annotation)
    raise TypeError(f"no example of {annotation}")
