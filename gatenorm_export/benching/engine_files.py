"""Engines as files: checked without loading them, and traced to the graphs that they were built from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.benching.context import configs_beside, mixture_of_experts
from gatenorm_export.benching.graph_work import graph_work
from gatenorm_export.benching.pairing import Lineage
from gatenorm_export.benching.probing import ITEMSIZE
from gatenorm_export.building.opening import check_pair, open_engine
from gatenorm_export.building.reach import DECODE, PREFILL
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import graph_file, graph_manifest
from gatenorm_export.records import EngineArtifact, PrunedGraph
from gatenorm_export.records.bench import Work

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class EngineFile:
    """An engine that has passed every check that needs no GPU. ``graph`` is None where it was not found."""

    path: Path
    record: EngineArtifact
    graph: Path | None
    work: Work | str
    kv_bytes_per_token: int


def read_engine(path: Path, flavour: str, graph: Path | None = None) -> EngineFile:
    """Check an engine against its record, this machine, and the graph that it was built from.

    ``graph`` is where that graph lies now; by default it is looked for where it was.

    Raises:
        InputError: no engine, no record, damaged, or ``graph`` is another one.
        MissingPartError: the engine's TensorRT is not installed.
        RefusedError: built by another TensorRT, version or for another GPU, or not by the flavour that was asked for.
    """
    if path.is_dir() or path.suffix == ".onnx":
        raise InputError(f"{path}: is no engine; gatenorm build makes one, or measure the graph with ort-cuda")
    record = open_engine(path)
    if record.flavour != flavour:
        raise RefusedError(f"{path}: was built by {record.flavour}; measure it with --backend {record.flavour}")
    if not {PREFILL, DECODE} <= {profile.name for profile in record.profiles}:
        raise InputError(f"{path}: its record names no profiles {PREFILL} and {DECODE}; build it with gatenorm build")
    if graph is not None:
        graph = graph_file(graph)
        if sha256_of(graph) != record.parent_sha256:
            raise InputError(f"{graph}: is not the graph that {path} was built from; name that one with --graphs")
    else:
        graph = _where_it_was(record)
    return EngineFile(path, record, graph, _work(record, graph), _kv_bytes(record))


def engine_lineage(base: EngineFile, pruned: EngineFile) -> Lineage:
    """Check two engines by their records.

    Raises:
        RefusedError: the same graph, swapped, of different parents, or not built alike.
    """
    check_pair(base.record, pruned.record)
    manifest = graph_manifest(pruned.graph, digest_data=False) if pruned.graph is not None else None
    return Lineage(
        base_sha256=base.record.sha256,
        pruned_sha256=pruned.record.sha256,
        n_layers=pruned.record.n_layers or len(_caches(base.record)) // 2,
        dropped=pruned.record.dropped or (),
        plan_sha256=manifest.plan_sha256 if isinstance(manifest, PrunedGraph) else None,
    )


def _where_it_was(record: EngineArtifact) -> Path | None:
    graph = Path(record.parent_path) if record.parent_path else None
    return graph if graph is not None and graph.is_file() and sha256_of(graph) == record.parent_sha256 else None


def _work(record: EngineArtifact, graph: Path | None) -> Work | str:
    if graph is None:
        return "the graphs that the engines were built from are not where they were; name them with --graphs"
    unknown = mixture_of_experts(configs_beside(graph))
    work = unknown or graph_work(graph)
    if not isinstance(work, Work):
        return work
    dtype = _DTYPES.get(record.precision, work.dtype)
    scale = ITEMSIZE[dtype] / ITEMSIZE[work.dtype]
    return work.model_copy(
        update={
            "dtype": dtype,
            "weight_bytes": round(work.weight_bytes * scale),
            "kv_bytes_per_token": round(work.kv_bytes_per_token * (scale if _caches_converted(record) else 1)),
            # TensorRT fuses attention: scores never reach memory.
            "score_bytes_per_pair": 0,
        }
    )


def _caches_converted(record: EngineArtifact) -> bool:
    return record.prepared is not None and bool(record.prepared.caches)


def _caches(record: EngineArtifact) -> list[str]:
    decode = next(profile for profile in record.profiles if profile.name == DECODE)
    return [bound.input for bound in decode.bounds if bound.input not in {TOKENS, MASK, POSITIONS}]


def _kv_bytes(record: EngineArtifact) -> int:
    """Bytes that a token adds, by the lengths that are fixed in both profiles; the precision tells the width."""
    profiles = {profile.name: {bound.input: bound for bound in profile.bounds} for profile in record.profiles}
    narrow = record.prepared is None or _caches_converted(record)
    width = ITEMSIZE[_DTYPES.get(record.precision, "float32") if narrow else "float32"]
    total = 0
    for name in _caches(record):
        decode, prefill = profiles[DECODE][name], profiles[PREFILL][name]
        # The first length is the batch; the past is what differs between the profiles.
        lengths = zip(decode.min[1:], decode.max[1:], prefill.max[1:], strict=True)
        total += width * math.prod(low for low, high, other in lengths if low == high == other)
    return total
