"""Take the cache tensors of removed sublayers out of the graph's signature: the one pass that changes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from graph_passes.sites import AttentionSite, SurgeryRefused

KVNames = Literal["dense", "keep"]
"""``dense`` renumbers the remaining cache tensors 0..n-1; ``keep`` leaves every name as it was."""


class DropCacheIO(ir.passes.InPlacePass):
    """Drop ``present`` outputs and ``past`` inputs of the removed sites; rename those of the kept ones.

    Runs after a sweep, when nothing reads the dropped inputs any more.
    """

    def __init__(self, removed: Sequence[AttentionSite], kept: Sequence[AttentionSite], names: KVNames) -> None:
        super().__init__()
        self._removed = tuple(removed)
        self._kept = tuple(kept)
        self._names = names

    def requires(self, model: ir.Model) -> None:
        """Nothing reads the inputs that go.

        Raises:
            PreconditionError: a reader is left; the text names it.
        """
        for site in self._removed:
            for past in site.cache.past:
                for node in past.consumers():
                    raise ir.passes.PreconditionError(
                        f"layer {site.layer}, node {node.name or '<unnamed>'} ({node.op_type}) still reads {past.name}"
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the inputs, then rename. Outputs went with the sweep."""
        renames = dense_names(self._removed, self._kept) if self._names == "dense" else {}
        for site in self._removed:
            for past in site.cache.past:
                model.graph.inputs.remove(past)
        # Ascending order: a name is free before the next layer takes it.
        for value, name in renames.items():
            value.name = name
        return ir.passes.PassResult(model, modified=bool(self._removed or renames))


def dense_names(removed: Sequence[AttentionSite], kept: Sequence[AttentionSite]) -> dict[ir.Value, str]:
    """New names for the kept cache tensors whose layer number changes, so that numbers run 0..n-1 without a gap.

    The layer number in a name is the integer that grows from layer to layer; which one that is, is read off the
    names of all sites together.

    Raises:
        SurgeryRefused: the names carry no such number.
    """
    cached = sorted((site for site in (*removed, *kept) if site.cache.past or site.cache.present), key=_layer)
    staying = [site for site in cached if site in kept]
    renames: dict[ir.Value, str] = {}
    for field in ("past", "present"):
        per_site = [getattr(site.cache, field) for site in cached]
        for slot in range(max((len(values) for values in per_site), default=0)):
            if any(len(values) <= slot for values in per_site):
                raise SurgeryRefused(f"the layers have different numbers of {field} tensors; use keep instead of dense")
            names = {site: getattr(site.cache, field)[slot].name or "" for site in cached}
            position = _growing_number(list(names.values()))
            for index, site in enumerate(staying):
                new = _with_number(names[site], position, index)
                if new != names[site]:
                    renames[getattr(site.cache, field)[slot]] = new
    return renames


def _layer(site: AttentionSite) -> int:
    return site.layer


def _growing_number(names: Sequence[str]) -> int:
    numbers = [[int(number) for number in re.findall(r"\d+", name)] for name in names]
    for position in range(min((len(found) for found in numbers), default=0)):
        column = [found[position] for found in numbers]
        if column == sorted(set(column)):
            return position
    raise SurgeryRefused(f"the cache names ({names[0]}, ...) carry no layer number to renumber; use keep, not dense")


def _with_number(name: str, position: int, number: int) -> str:
    matches = list(re.finditer(r"\d+", name))
    return f"{name[: matches[position].start()]}{number}{name[matches[position].end() :]}"
