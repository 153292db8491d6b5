"""Do two models belong together, and is the first one the base? By their manifests, or else by what is in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import graph_manifest
from gatenorm_export.pruning import describe_graph
from gatenorm_export.records import ExportedGraph, PrunedGraph, PrunePlan


@dataclasses.dataclass(frozen=True)
class Lineage:
    """What ties a pruned model to its base."""

    base_sha256: str
    pruned_sha256: str
    n_layers: int
    dropped: tuple[int, ...]
    plan_sha256: str | None


def graph_lineage(base: Path, pruned: Path) -> Lineage:
    """Check two graphs.

    Raises:
        InputError: one is damaged, or not what its manifest describes.
        RefusedError: they are the same graph, swapped, or of different parents.
    """
    base_record, pruned_record = graph_manifest(base), graph_manifest(pruned)
    base_sha256, pruned_sha256 = sha256_of(base), sha256_of(pruned)
    if base_sha256 == pruned_sha256:
        raise RefusedError(f"{base} and {pruned} are the same graph; name a graph and what was pruned from it")
    if isinstance(base_record, PrunedGraph) and base_record.parent_sha256 == pruned_sha256:
        raise RefusedError(f"{base} was pruned from {pruned}: base and pruned are swapped; name the base first")
    if isinstance(pruned_record, PrunedGraph):
        recovered = isinstance(base_record, ExportedGraph) and pruned_record.recovered_from == base_record.model.digest
        if pruned_record.parent_sha256 != base_sha256 and not recovered:
            raise RefusedError(
                f"{pruned} was pruned from another graph ({pruned_record.parent_path}, sha256 "
                f"{pruned_record.parent_sha256[:12]}) than {base} ({base_sha256[:12]}); measure it with its own parent"
            )
        return Lineage(
            base_sha256, pruned_sha256, pruned_record.n_layers, pruned_record.dropped, pruned_record.plan_sha256
        )
    before, after = describe_graph(base), describe_graph(pruned)
    if before.n_layers != after.n_layers:
        raise RefusedError(
            f"{base} has {before.n_layers} attention layers, {pruned} comes from a graph with {after.n_layers}; "
            "measure a graph with what it was pruned from"
        )
    if not set(before.dropped) <= set(after.dropped):
        raise RefusedError(f"{base} lacks layers that {pruned} has: base and pruned are swapped; name the base first")
    if before.dropped == after.dropped:
        raise RefusedError(f"{pruned} has all layers that {base} has; name a graph and what was pruned from it")
    return Lineage(base_sha256, pruned_sha256, after.n_layers, after.dropped, None)


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
