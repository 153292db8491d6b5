"""Names that a user gives: which tensors are the query and the key weights of a model."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.names import FUSED, LOW_RANK, Pair, numbered
from gatenorm_export.architectures.resolving import NUMBER, Tensors, shown
from gatenorm_export.architectures.shapes import tower_of_pair
from gatenorm_export.architectures.tower import Tower
from gatenorm_export.errors import RefusedError

_FIELD = "{layer}"
_NEAR = 4
"""How many names a message offers."""


@dataclasses.dataclass(frozen=True)
class NamePatterns:
    """Stored names of the query and the key weight, with a ``{layer}`` field where the number of the layer stands."""

    query: str
    key: str


def towers_by_patterns(
    patterns: NamePatterns, config: Mapping[str, Any], tensors: Tensors, *, where: str
) -> tuple[Tower, ...]:
    """The one tower whose weights a user named; its heads are read from the config and must fit their shapes.

    Raises:
        InputError: the config holds a senseless dimension, or a layer has only one of the two.
        RefusedError: a pattern has not one field, matches nothing or a fused weight, or the shapes fit no number of
            heads in the config.
    """
    if patterns.query == patterns.key:
        raise RefusedError(
            f"{where}: --q-pattern and --k-pattern name the same tensors; a weight that fuses query and key cannot be "
            "split by its name, since the layout is not known"
        )
    pair = Pair(
        patterns.query,
        patterns.key,
        _matches("--q-pattern", patterns.query, tensors, where),
        _matches("--k-pattern", patterns.key, tensors, where),
    )
    found = f"query and key weights are those named by the user, {pair.query} and {pair.key}"
    return (tower_of_pair(pair, config, tensors, where=where, found=found),)


def _matches(option: str, pattern: str, tensors: Tensors, where: str) -> dict[int, str]:
    if pattern.count(_FIELD) != 1:
        raise RefusedError(
            f"{where}: {option} {pattern} needs one {_FIELD} field, where the number of the layer stands, as in "
            f"model.layers.{_FIELD}.attn.wq.weight"
        )
    if FUSED.intersection(pattern.split(".")) or LOW_RANK.intersection(pattern.split(".")):
        raise RefusedError(
            f"{where}: {option} {pattern} names a weight that is fused or a low-rank factor by its name; only separate "
            "query and key weights can be named"
        )
    before, after = (re.escape(part) for part in pattern.split(_FIELD))
    expression = re.compile(before + NUMBER + after)
    found = {int(match[1]): name for name in tensors if (match := expression.fullmatch(name))}
    if not found:
        templates = {".".join(_FIELD if part == "{}" else part for part in numbered(name)[0]): None for name in tensors}
        near = difflib.get_close_matches(pattern, templates, n=_NEAR, cutoff=0.5)
        offer = f"near it are {', '.join(near)}" if near else f"the checkpoint holds {shown(templates)}"
        raise RefusedError(f"{where}: {option} {pattern} matches no tensor; {offer}")
    return dict(sorted(found.items()))
