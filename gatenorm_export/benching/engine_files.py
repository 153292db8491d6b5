"""Engines as files: checked without loading them, and traced to the graphs that they were built from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.benching.context import mixture_of_experts, read_config
from gatenorm_export.benching.engine_model import DECODE, PREFILL
from gatenorm_export.benching.graph_work import graph_work
from gatenorm_export.benching.pairing import Lineage, graph_lineage
from gatenorm_export.benching.probing import ITEMSIZE
from gatenorm_export.comparing.signature import MASK, POSITIONS, TOKENS
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import graph_file
from gatenorm_export.records import EngineArtifact
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
    """Check an engine against its record, and ``graph`` against the digest of what it was built from.

    Raises:
        InputError: no engine, no record, damaged, or ``graph`` is another one.
        RefusedError: built by another TensorRT or version, or not by the flavour that was asked for.
    """
    from gatenorm_export.evaluating.engine import check_engine

    if path.is_dir() or path.suffix == ".onnx":
        raise InputError(f"{path}: is no engine; gatenorm build makes one, or measure the graph with ort-cuda")
    record = check_engine(path)
    if record.flavour != flavour:
        raise RefusedError(f"{path}: was built by {record.flavour}; measure it with --backend {record.flavour}")
    if graph is not None:
        graph = graph_file(graph)
        if sha256_of(graph) != record.parent_sha256:
            raise InputError(f"{graph}: is not the graph that {path} was built from; name that one with --graphs")
    return EngineFile(path, record, graph, _work(record, graph), _kv_bytes(record))


def engine_lineage(base: EngineFile, pruned: EngineFile) -> tuple[Lineage, tuple[str, ...]]:
    """Check two engines by the graphs they were built from; and notes.

    Without the graphs, what can be told is told by the caches: a pruned engine has fewer.

    Raises:
        RefusedError: the same graph, swapped, or of different parents.
    """
    if base.record.parent_sha256 == pruned.record.parent_sha256:
        raise RefusedError(f"{base.path} and {pruned.path} were built from the same graph; there is nothing to compare")
    if base.graph is not None and pruned.graph is not None:
        return dataclasses.replace(
            graph_lineage(base.graph, pruned.graph),
            base_sha256=base.record.sha256,
            pruned_sha256=pruned.record.sha256,
        ), ()
    before, after = len(_caches(base.record)), len(_caches(pruned.record))
    if before <= after:
        raise RefusedError(
            f"{base.path} has {before} cache inputs and {pruned.path} {after}: base and pruned are swapped, or no "
            "pair; name the base first"
        )
    note = (
        "that the engines belong together was told by their caches alone, and which layers are gone is not known: name "
        "the graphs they were built from with --graphs"
    )
    return Lineage(base.record.sha256, pruned.record.sha256, before // 2, (), None), (note,)


def _work(record: EngineArtifact, graph: Path | None) -> Work | str:
    if graph is None:
        return "the graphs that the engines were built from are not at hand; name them with --graphs"
    unknown = mixture_of_experts(read_config(graph.parent))
    work = unknown or graph_work(graph)
    if not isinstance(work, Work):
        return work
    dtype = _DTYPES.get(record.precision, work.dtype)
    scale = ITEMSIZE[dtype] / ITEMSIZE[work.dtype]
    return work.model_copy(
        update={
            "dtype": dtype,
            "weight_bytes": round(work.weight_bytes * scale),
            "kv_bytes_per_token": round(work.kv_bytes_per_token * scale),
            # TensorRT fuses attention: scores never reach memory.
            "score_bytes_per_pair": 0,
        }
    )


def _caches(record: EngineArtifact) -> list[str]:
    decode = next(profile for profile in record.profiles if profile.name == DECODE)
    return [bound.input for bound in decode.bounds if bound.input not in {TOKENS, MASK, POSITIONS}]


def _kv_bytes(record: EngineArtifact) -> int:
    """Bytes that a token adds, by the lengths that are fixed in both profiles; the precision tells the width."""
    profiles = {profile.name: {bound.input: bound for bound in profile.bounds} for profile in record.profiles}
    width = ITEMSIZE[_DTYPES.get(record.precision, "float32")]
    total = 0
    for name in _caches(record):
        decode, prefill = profiles[DECODE][name], profiles[PREFILL][name]
        # The first length is the batch; the past is what differs between the profiles.
        lengths = zip(decode.min[1:], decode.max[1:], prefill.max[1:], strict=True)
        total += width * math.prod(low for low, high, other in lengths if low == high == other)
    return total
