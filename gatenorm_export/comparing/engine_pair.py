"""Two engines beside the two graphs that are compared: do they belong to them, and are they right?"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

from gatenorm_export.building import check_pair, check_runnable, check_version, find_gpu, read_engine
from gatenorm_export.building.network import read_network
from gatenorm_export.comparing.engine_accuracy import Found, accuracy_record, check_engine
from gatenorm_export.comparing.engine_judging import tolerance_of
from gatenorm_export.errors import GateNormError, MissingPartError, RefusedError
from gatenorm_export.graph_pair import GraphPair
from gatenorm_export.precision import graph_arithmetic
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import EngineAccuracy, EngineArtifact

NO_GPU = "not run: no GPU (running an engine needs an NVIDIA GPU, and this machine shows none)"


@dataclasses.dataclass(frozen=True)
class EnginePair:
    """The base's engine and the pruned graph's, with their records.

    ``asked`` says that they were named: then a machine that has a GPU and cannot run them is an error. Engines that
    were built along the way are left out with the reason.
    """

    base: Path
    pruned: Path
    base_record: EngineArtifact
    pruned_record: EngineArtifact
    asked: bool = True

    @property
    def records(self) -> tuple[EngineArtifact, EngineArtifact]:
        """Both records, the base's first."""
        return self.base_record, self.pruned_record


def read_engine_pair(base: Path, pruned: Path) -> EnginePair:
    """Two engines that were named, held against their records and against each other; neither is loaded.

    Raises:
        InputError: one is missing, damaged, or no engine.
        RefusedError: they are swapped, of different parents, not built alike, or by another version of their TensorRT
            than is installed.
    """
    pair = EnginePair(base, pruned, read_engine(base), read_engine(pruned))
    check_pair(*pair.records)
    # Without TensorRT, as without a GPU, there is still something to tell: sizes and what conversion cost.
    with contextlib.suppress(MissingPartError):
        for path, record in zip((base, pruned), pair.records, strict=True):
            check_version(path, record)
    return pair


def check_built_from(engines: EnginePair, graphs: GraphPair) -> None:
    """Make sure that each engine was built from the graph that it stands beside, data files included.

    Raises:
        InputError: a graph is damaged.
        RefusedError: an engine was built from another graph.
    """
    for path, record, graph, digest in (
        (engines.base, engines.base_record, graphs.base, graphs.base_sha256),
        (engines.pruned, engines.pruned_record, graphs.pruned, graphs.pruned_sha256),
    ):
        if record.parent_sha256 != digest:
            raise RefusedError(
                f"{path}: was built from graph {record.parent_sha256[:12]} ({record.parent_path or 'place unknown'}), "
                f"and not from {graph} ({digest[:12]}); name the graphs' own engines, the base's first"
            )
        if engines.asked and record.network_sha256 is not None:
            found = read_network(graph).network_sha256
            if record.network_sha256 != found:
                raise RefusedError(
                    f"{path}: was built from {graph} with other weights ({record.network_sha256[:12]}) than its data "
                    f"files hold now ({found[:12]}); build it again"
                )


def engine_accuracies(
    engines: EnginePair, graphs: GraphPair, *, progress: Progress | None = None
) -> tuple[EngineAccuracy, ...]:
    """Each engine against its graph; without a GPU, why that was not done.

    Raises:
        MissingPartError: the TensorRT of engines that were named is not installed.
        RefusedError: engines that were named are of another version or for another GPU, or one fails while it runs.
    """
    progress = progress or Quiet()
    gpu = find_gpu()
    reason = NO_GPU if gpu is None else _refusal(engines)
    device = str(gpu) if gpu is not None else "none"
    found = []
    roles: tuple[Literal["unpruned", "pruned"], ...] = ("unpruned", "pruned")
    for role, path, record, graph in zip(
        roles, (engines.base, engines.pruned), engines.records, (graphs.base, graphs.pruned), strict=True
    ):
        if reason:
            nothing = Found((), (), None, reason)
            tolerance = tolerance_of(record, graph_arithmetic(graph))
            found.append(accuracy_record(record, role, nothing, tolerance, device=device, reference="none"))
        else:
            found.append(check_engine(path, record, graph, role, device=device, progress=progress))
    return tuple(found)


def _refusal(engines: EnginePair) -> str:
    """Why this machine does not run the engines; empty where it does."""
    try:
        for path, record in zip((engines.base, engines.pruned), engines.records, strict=True):
            check_runnable(path, record)
    except GateNormError as error:
        if engines.asked:
            raise
        return f"not run: {error}"
    return ""
