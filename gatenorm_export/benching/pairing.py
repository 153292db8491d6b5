"""Do two models belong together, and is the first one the base? By their manifests, or else by what is in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graph_pair import read_graph_pair
from gatenorm_export.records import PrunePlan


@dataclasses.dataclass(frozen=True)
class Lineage:
    """What ties a pruned model to its base."""

    base_sha256: str
    pruned_sha256: str
    n_layers: int
    dropped: tuple[int, ...]
    plan_sha256: str | None


def graph_lineage(base: Path, pruned: Path) -> Lineage:
    """Check two graphs: as :func:`read_graph_pair` does, and that one of them is pruned further.

    Raises:
        InputError: one is damaged, or not what its manifest describes.
        RefusedError: they are the same graph, swapped, or of different parents.
    """
    if sha256_of(base) == sha256_of(pruned):
        raise RefusedError(f"{base} and {pruned} are the same graph; name a graph and what was pruned from it")
    pair = read_graph_pair(base, pruned)
    if pair.nothing_removed:
        raise RefusedError(f"{pruned} has all layers that {base} has; name a graph and what was pruned from it")
    return Lineage(pair.base_sha256, pair.pruned_sha256, pair.n_layers, pair.dropped, pair.plan_sha256)


def read_plan(path: Path, checkpoint: str) -> PrunePlan:
    """The plan that stands for the pruned model of the torch backend.

    Raises:
        InputError: no plan.
        RefusedError: it removes nothing.
    """
    if path.is_dir() or not path.is_file():
        raise InputError(f"{path}: no such plan; with torch, BASE is a checkpoint and PRUNED a plan.json for it")
    plan = PrunePlan.load(path)
    if not plan.drop:
        raise RefusedError(f"{path}: the plan removes nothing from {checkpoint}; there is nothing to measure")
    return plan
