"""Two graphs that belong together: the second is the first, pruned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import RefusedError
from gatenorm_export.graphs import GRAPH_NAME, graph_file, graph_manifest, manifest_file
from gatenorm_export.kinds import SPEECH_GRAPHS, kind_of_graph
from gatenorm_export.pruning import describe_graph
from gatenorm_export.records import Convention, ExportedGraph, GraphFacts, ModelSpec, PrunedGraph, RepairRecord


@dataclasses.dataclass(frozen=True)
class GraphPair:
    """The two graphs, known to belong together."""

    base: Path
    pruned: Path
    base_sha256: str
    pruned_sha256: str
    base_facts: GraphFacts
    pruned_facts: GraphFacts
    n_layers: int
    dropped: tuple[int, ...]
    model: ModelSpec | None
    convention: Convention
    repair: RepairRecord | None = None
    tower: str = ""
    cross: tuple[int, ...] = ()
    n_cross: int = 0
    plan_sha256: str | None = None
    nothing_removed: bool = False
    """Only of graphs without a record: that both lack the same layers."""

    @property
    def judged(self) -> tuple[str, tuple[int, ...], int]:
        """The tower that was pruned, its removed layers, and how many it had."""
        if self.cross and not self.dropped:
            return "cross", self.cross, self.n_cross
        return self.tower, self.dropped, self.n_layers


def pair_of_files(base: Path, pruned: Path) -> tuple[Path, Path]:
    """The two ONNX files that a user means by files or folders.

    Of two folders of a speech model's graphs it is the one that was pruned; of a folder and a file the one of the
    file's name.

    Raises:
        InputError: a file is not there, or nothing tells which of a folder's graphs is meant.
    """
    named = next((path.name for path in (base, pruned) if not path.is_dir()), None) or _pruned_part(base, pruned)
    first, second = (
        path / named if path.is_dir() and not (path / GRAPH_NAME).is_file() and (path / named).is_file() else path
        for path in (base, pruned)
    )
    return graph_file(first), graph_file(second)


def _pruned_part(base: Path, pruned: Path) -> str:
    """The name of the one speech graph that a folder has pruned; empty where there is none, or more than one.

    The other one is copied beside it, without a record. Of graphs without any record it is the one that differs.
    """
    both = [name for name in SPEECH_GRAPHS.values() if all((path / name).is_file() for path in (base, pruned))]
    found = [name for name in both if manifest_file(pruned / name).is_file()]
    if not found:
        found = [name for name in both if sha256_of(base / name) != sha256_of(pruned / name)]
    return found[0] if len(found) == 1 else ""


def read_graph_pair(base: Path, pruned: Path) -> GraphPair:
    """Check two graphs, by their manifests, or else by what is in them.

    Raises:
        InputError: one is damaged or missing.
        RefusedError: they are no pair: swapped, or of different parents.
    """
    base_record, pruned_record = graph_manifest(base), graph_manifest(pruned)
    base_sha256, pruned_sha256 = sha256_of(base), sha256_of(pruned)
    model = (pruned_record or base_record or _NO_RECORD).model
    if isinstance(base_record, PrunedGraph) and base_record.parent_sha256 == pruned_sha256:
        raise RefusedError(f"{base} was pruned from {pruned}: base and pruned are swapped; name the base first")
    if isinstance(pruned_record, PrunedGraph):
        if pruned_record.parent_sha256 != base_sha256 and not _recovered(base_record, pruned_record):
            raise RefusedError(
                f"{pruned} was pruned from another graph ({pruned_record.parent_path}, sha256 "
                f"{pruned_record.parent_sha256[:12]}) than {base} ({base_sha256[:12]}); compare it with its own parent"
            )
        return GraphPair(
            base,
            pruned,
            base_sha256,
            pruned_sha256,
            pruned_record.before,
            pruned_record.after,
            pruned_record.n_layers,
            pruned_record.dropped,
            model,
            pruned_record.convention,
            pruned_record.repair,
            pruned_record.tower,
            pruned_record.dropped_cross,
            pruned_record.n_cross,
            pruned_record.plan_sha256,
        )
    before, after = describe_graph(base), describe_graph(pruned)
    if before.n_layers != after.n_layers:
        raise RefusedError(
            f"{base} has {before.n_layers} attention layers, {pruned} comes from a graph with {after.n_layers}; "
            "compare a graph with what it was pruned from"
        )
    if not set(before.dropped) <= set(after.dropped):
        raise RefusedError(f"{base} lacks layers that {pruned} has: base and pruned are swapped; name the base first")
    return GraphPair(
        base,
        pruned,
        base_sha256,
        pruned_sha256,
        before.facts,
        after.facts,
        after.n_layers,
        after.dropped,
        model,
        Convention(),
        tower=kind_of_graph(pruned).tower,
        cross=after.dropped_cross,
        n_cross=after.n_cross,
        nothing_removed=before.dropped == after.dropped,
    )


def _recovered(base: ExportedGraph | PrunedGraph | None, pruned: PrunedGraph) -> bool:
    """Whether a fine-tuned graph came from the base's checkpoint; its own parent is not kept, and proves less."""
    before = base.model.digest if isinstance(base, ExportedGraph) and base.model is not None else None
    return before is not None and pruned.recovered_from == before


@dataclasses.dataclass(frozen=True)
class _NoRecord:
    model: ModelSpec | None = None


_NO_RECORD: ExportedGraph | PrunedGraph | _NoRecord = _NoRecord()
