"""Names of the cache tensors after a pruning: renumbered without a gap, or as they were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from graph_passes.sites import AttentionSite, Kind, NoMatch, SurgeryRefused

KVNames = Literal["dense", "keep"]
"""``dense`` renumbers the remaining cache tensors 0..n-1; ``keep`` leaves every name as it was."""

_KINDS: tuple[Kind, ...] = ("self", "cross")


def dense_names(removed: Sequence[AttentionSite], kept: Sequence[AttentionSite | NoMatch]) -> dict[str, str]:
    """New names for the kept cache tensors whose number changes, so that numbers run on from the first without a gap.

    The number in a name is the integer that grows from layer to layer; which one that is, is read off the names of all
    layers together. Where keys and values of a layer are numbered on (0, 1, then 2, 3), so are the new names. The
    caches of self-attention and of cross-attention are numbered each by itself. ``kept`` includes layers that were not
    matched.

    Raises:
        SurgeryRefused: the names carry no such number, or the layers have different numbers of cache tensors.
    """
    renames: dict[str, str] = {}
    for kind in _KINDS:
        sublayers = [site for site in (*removed, *kept) if site.kind == kind and site.layer is not None]
        staying = {site.layer for site in kept if site.kind == kind}
        for field in ("past", "present"):
            # The branches of an If share their inputs and outputs, and not each of them has them all.
            names: dict[int, dict[str, None]] = {}
            for site in sorted(sublayers, key=lambda site: site.layer or 0):
                assert site.layer is not None
                tensors: tuple[ir.Value, ...] = getattr(site.cache, field)
                names.setdefault(site.layer, {}).update((value.name or "", None) for value in tensors)
            cached = [(layer in staying, tuple(of_layer)) for layer, of_layer in names.items() if of_layer]
            renames |= _renumber(cached, field)
    return renames


def _renumber(layers: Sequence[tuple[bool, tuple[str, ...]]], field: str) -> dict[str, str]:
    slots = max((len(names) for _, names in layers), default=0)
    if not slots:
        return {}
    if any(len(names) != slots for _, names in layers):
        raise SurgeryRefused(f"the layers have different numbers of {field} tensors; use keep instead of dense")
    columns = [[names[slot] for _, names in layers] for slot in range(slots)]
    positions = [_growing_number(column) for column in columns]
    numbers = [
        [_numbers(name)[position] for name in column] for column, position in zip(columns, positions, strict=True)
    ]
    # Keys and values numbered on: 0, 1 for the first layer, 2, 3 for the next.
    interleaved = slots > 1 and all(row == tuple(range(row[0], row[0] + slots)) for row in zip(*numbers, strict=True))
    stride = slots if interleaved else 1
    renames: dict[str, str] = {}
    for slot in range(slots):
        first = slot if interleaved else 0
        for index, names in enumerate(names for stays, names in layers if stays):
            new = _with_number(names[slot], positions[slot], first + stride * index)
            if new != names[slot]:
                renames[names[slot]] = new
    return renames


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _growing_number(names: Sequence[str]) -> int:
    numbers = [_numbers(name) for name in names]
    for position in range(min((len(found) for found in numbers), default=0)):
        column = [found[position] for found in numbers]
        if column == sorted(set(column)):
            return position
    raise SurgeryRefused(f"the cache names ({names[0]}, ...) carry no layer number to renumber; use keep, not dense")


def _with_number(name: str, position: int, number: int) -> str:
    matches = list(re.finditer(r"\d+", name))
    return f"{name[: matches[position].start()]}{number}{name[matches[position].end() :]}"
