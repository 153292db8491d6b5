"""A model of no known family: its query and key weights by names and shapes, or a refusal that lists what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.names import FUSED, LOW_RANK, PAIRS, Pair, with_layer, word_of
from gatenorm_export.architectures.resolving import Tensors, shown
from gatenorm_export.architectures.shapes import tower_of_pair
from gatenorm_export.architectures.tower import Tower
from gatenorm_export.errors import RefusedError

UNKNOWN = "unknown"
"""The architecture of a config that names none."""

_NAME_THEM = "name the weights with --q-pattern and --k-pattern"


def guess_towers(architecture: str, config: Mapping[str, Any], tensors: Tensors, *, where: str) -> tuple[Tower, ...]:
    """The one tower of a model whose names and shapes leave no doubt.

    A wrong guess is worse than none: a fused or low-rank weight, a second stack of layers, names that differ in two
    numbers, and shapes that no number of heads in the config fits are refused.

    Raises:
        InputError: the config holds a senseless dimension, or a layer has only one of the two weights.
        RefusedError: there is doubt; the text lists the tensors found.
    """
    what = (
        f"{architecture} is not in gatenorm's table" if architecture != UNKNOWN else "the config names no architecture"
    )
    unknown = f"{where}: {what}"
    weights = [name for name, info in tensors.items() if len(info.shape) == 2]
    queries = dict(PAIRS)
    named = with_layer(name for name in weights if word_of(name) in {*queries, *queries.values()})
    odd = with_layer(name for name in weights if word_of(name) in FUSED | LOW_RANK)
    if odd:
        separate = _queries(named)
        raise RefusedError(
            f"{unknown}, and it has weights that are fused or of low rank ({shown(odd)}); how those are laid out "
            "cannot be known from names and shapes"
            + (f"; if {shown(separate)} are meant, {_NAME_THEM}" if separate else "")
        )
    pairs = []
    for template, layers in _queries(named).items():
        word = word_of(template)
        head, _, tail = template.rpartition(word)
        key = f"{head}{queries[word]}{tail}"
        if key not in named:
            continue
        keys = named[key]
        if layers is None or keys is None:
            raise RefusedError(
                f"{unknown}, and names like {template} hold several numbers, of which any may count the layers; "
                f"{_NAME_THEM}"
            )
        pairs.append(Pair(template, key, layers, keys))
    if not pairs:
        raise RefusedError(
            f"{unknown}, and no tensor has a name like one of a query or key weight; it holds "
            f"{shown(tensors)}; {_NAME_THEM}"
        )
    if len(pairs) > 1:
        found = ", ".join(f"{pair.query} with {pair.key}" for pair in pairs)
        raise RefusedError(f"{unknown}, and which attention is meant cannot be known: found {found}; {_NAME_THEM}")
    (pair,) = pairs
    found = f"{what}; query and key weights were found by names and shapes, {pair.query} and {pair.key}"
    return (tower_of_pair(pair, config, tensors, where=where, found=found),)


def _queries(named: Mapping[str, dict[int, str] | None]) -> dict[str, dict[int, str] | None]:
    words = {query for query, _ in PAIRS}
    return {template: layers for template, layers in named.items() if word_of(template) in words}
