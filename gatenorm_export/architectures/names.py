"""Words that name query and key weights, and names that differ in one number."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from gatenorm_export.architectures.resolving import NUMBER

PAIRS: tuple[tuple[str, str], ...] = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("query_proj", "key_proj"),
    ("query_layer", "key_layer"),
    ("q", "k"),
    ("wq", "wk"),
    ("Wq", "Wk"),
    ("w_q", "w_k"),
    ("W_Q", "W_K"),
    ("q_lin", "k_lin"),
    ("q_linear", "k_linear"),
    ("linear_q", "linear_k"),
    ("to_q", "to_k"),
    ("project_q", "project_k"),
    ("attn_q", "attn_k"),
)
"""What a query weight is called, and what the key weight beside it is called."""

FUSED = frozenset(
    {
        "qkv_proj",
        "query_key_value",
        "c_attn",
        "Wqkv",
        "wqkv",
        "qkv",
        "to_qkv",
        "attn_qkv",
        "qkv_layer",
        "in_proj_weight",
        "W_pack",
        "kv_proj",
        "to_kv",
        "key_value",
        "qk_proj",
    }
)
LOW_RANK = frozenset({"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "attn_kv_a_mqa", "attn_q_a"})

_WEIGHT = "weight"
_NUMBER = re.compile(NUMBER)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Query and key weights of a stack: their names with a ``{layer}`` field, and by layer the stored ones."""

    query: str
    key: str
    queries: dict[int, str]
    keys: dict[int, str]


def numbered(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A name's parts with "{}" for those that are numbers, and the numbers."""
    parts = name.split(".")
    numbers = tuple(int(part) for part in parts if _NUMBER.fullmatch(part))
    return tuple("{}" if _NUMBER.fullmatch(part) else part for part in parts), numbers


def word_of(name: str) -> str:
    """The part of a name that says what the weight is: the last, or the last before "weight"."""
    parts = name.split(".")
    return parts[-2] if parts[-1] == _WEIGHT and len(parts) > 1 else parts[-1]


def with_layer(names: Iterable[str]) -> dict[str, dict[int, str] | None]:
    """Names grouped by what is equal in them, with a ``{layer}`` field where a number differs, by that number.

    None where more than one number differs: which of them counts layers cannot be known.
    """
    groups: dict[tuple[str, ...], dict[tuple[int, ...], str]] = {}
    for name in names:
        parts, numbers = numbered(name)
        if numbers:
            groups.setdefault(parts, {})[numbers] = name
    result: dict[str, dict[int, str] | None] = {}
    for parts, members in groups.items():
        columns = list(zip(*members, strict=True))
        varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
        if not varying and len(columns) == 1:
            varying = [0]
        fields = iter("{layer}" if i in varying else str(column[0]) for i, column in enumerate(columns))
        template = ".".join(next(fields) if part == "{}" else part for part in parts)
        result[template] = (
            {numbers[varying[0]]: name for numbers, name in sorted(members.items())} if len(varying) == 1 else None
        )
    return result
