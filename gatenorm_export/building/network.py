"""What has to be known of a graph before it is built: its digest, its weights, and what it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.graph_checks import blames_graph
from gatenorm_export.graphs import external_tensors, graph_manifest, load_graph
from gatenorm_export.records import PrunedGraph


@dataclasses.dataclass(frozen=True)
class Network:
    """A graph to build. ``sha256`` is the ONNX file's digest, ``network_sha256`` is over its data files too."""

    sha256: str
    network_sha256: str
    weight_bytes: int
    float32_bytes: int
    n_nodes: int
    ancestors: tuple[str, ...] | None
    n_layers: int | None
    dropped: tuple[int, ...] | None
    model_digest: str | None
    recovered_from: str | None


@blames_graph
def read_network(graph: Path) -> Network:
    """Digest a graph and its data, count its weights, and tell by its manifest what it was pruned from.

    Raises:
        InputError: the graph is damaged, or is not the one that its manifest describes.
    """
    record = graph_manifest(graph)
    model = load_graph(graph)
    import onnx_ir as ir

    weights, wide = 0, 0
    for inner in model.graphs():
        for value in inner.initializers.values():
            if value.const_value is not None and not value.const_value.dtype.is_string():
                weights += value.const_value.nbytes
                wide += value.const_value.nbytes if value.const_value.dtype.name == "FLOAT" else 0
    data = sorted({Path(tensor.path).resolve() for tensor, _ in external_tensors(model)})
    digest = sha256_of(graph)
    lines = [digest, *(sha256_of(path) for path in data)]
    pruned = record if isinstance(record, PrunedGraph) else None
    model_spec = record.model if record is not None else None
    return Network(
        sha256=digest,
        network_sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest() if data else digest,
        weight_bytes=weights,
        float32_bytes=wide,
        n_nodes=sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph)),
        ancestors=pruned.lineage if pruned is not None else (() if record is not None else None),
        n_layers=pruned.n_layers if pruned is not None else (model_spec.n_layers if model_spec is not None else None),
        dropped=pruned.dropped if pruned is not None else (() if record is not None else None),
        model_digest=model_spec.digest if model_spec is not None else None,
        recovered_from=pruned.recovered_from if pruned is not None else None,
    )
