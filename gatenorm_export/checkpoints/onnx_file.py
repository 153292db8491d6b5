"""An ONNX file by itself as a checkpoint: the query and key weights of every attention that the analysis finds.

Tensors have canonical names, ``layers.{i}.query`` and ``layers.{i}.key`` for self-attention, ``cross.{i}.query`` and
``cross.{i}.key`` for cross-attention, [out, in] as PyTorch keeps Linear weights, query heads in the order of the key
heads that they share. Constant factors that an exporter folds into queries scale every layer's score alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from gatenorm_export.checkpoints.onnx_columns import ColumnTracer
from gatenorm_export.checkpoints.onnx_constants import read_tensor
from gatenorm_export.checkpoints.onnx_heads import Heads, Untraced, trace_heads
from gatenorm_export.checkpoints.onnx_projections import Projection
from gatenorm_export.checkpoints.tensors import StoredTensor, TensorInfo
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graph_checks import blames_graph, whose_fault
from gatenorm_export.shape_inference import check_shapes
from gatenorm_export.silence import silenced

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionSite, Dataflow

TOWER_PREFIXES = {"self": "layers", "cross": "cross"}
# A low-rank projection stands on one other; a third one would be something else.
_DEEPEST_CHAIN = 3


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Some columns of projections and, where a projection does not read the block's input, the chain behind it."""

    picks: tuple[tuple[Projection, np.ndarray, np.ndarray, _Chain | None], ...]
    """Projection, rows of the result, columns of the projection, what the projection reads."""
    rows: int

    @property
    def d_model(self) -> int:
        projection, _, _, behind = self.picks[0]
        return projection.depth if behind is None else behind.d_model

    @property
    def projections(self) -> tuple[Projection, ...]:
        found: dict[int, Projection] = {}
        for projection, _, _, behind in self.picks:
            found |= {id(inner.node): inner for inner in (projection, *(behind.projections if behind else ()))}
        return tuple(found.values())


class OnnxSource:
    """The query and key weights of an ONNX graph; ``fields`` has what a config.json would say."""

    def __init__(self, graph: Path) -> None:
        """Read the graph, find its attention and trace each query and key to weights; no weight is read.

        Raises:
            MissingPartError: onnx-ir is not installed.
            InputError: no ONNX file, without attention, or a weight cannot be traced; the text names layer and node.
        """
        self._graph = graph
        self._chains: dict[str, _Chain] = {}
        self._last: tuple[Projection, np.ndarray, bytes] | None = None
        towers = _towers(graph, self._chains)
        self.fields: Mapping[str, Any] = {"towers": towers}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(
                name=name,
                shape=(chain.rows, chain.d_model),
                dtype=", ".join(sorted({projection.stored_as for projection in chain.projections})),
                nbytes=sum(_nbytes(projection) for projection in chain.projections),
                file=str(graph),
            )
            for name, chain in self._chains.items()
        }

    def read(self, name: str) -> StoredTensor:
        """See :class:`gatenorm_export.checkpoints.TensorSource`."""
        chain = self._chains.get(name)
        if chain is None:
            raise InputError(f"{self._graph}: tensor {name} is missing")
        state = xxhash.xxh3_128()
        with whose_fault(self._graph):
            values = self._compute(chain, f"{self._graph}: tensor {name}", state)
        return StoredTensor(values, state.hexdigest())

    def close(self) -> None:
        """Let go of the last weight."""
        self._last = None

    def _compute(self, chain: _Chain, where: str, state: Any) -> np.ndarray:
        parts = []
        for projection, rows, columns, behind in chain.picks:
            weight = _picked(self._weight(projection, where, state), columns)
            if behind is not None:
                weight = weight.astype(np.float32) @ self._compute(behind, where, state).astype(np.float32)
            parts.append((rows, weight))
        if len(parts) == 1:
            return parts[0][1]
        values = np.empty((chain.rows, chain.d_model), dtype=np.result_type(*(np.float32 for _ in parts)))
        for rows, weight in parts:
            values[rows] = weight
        return values

    def _weight(self, projection: Projection, where: str, state: Any) -> np.ndarray:
        """The projection's weight; that of a fused projection is asked for twice in a row and read once."""
        if self._last is None or self._last[0] is not projection:
            self._last = None
            digest = xxhash.xxh3_128()

            def read(tensor: ir.TensorProtocol) -> np.ndarray:
                values = read_tensor(tensor)
                flat = np.ascontiguousarray(values).reshape(-1)
                digest.update(flat.view(np.uint8).data if flat.size else b"")
                return values

            self._last = projection, projection.weight(where, read), digest.digest()
        state.update(self._last[2])
        return self._last[1]


def _picked(weight: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Rows of a weight, without a copy where they follow each other."""
    picked: np.ndarray
    first, count = int(columns[0]), len(columns)
    if np.array_equal(columns, np.arange(first, first + count)):
        picked = weight[first : first + count]
    else:
        picked = weight[columns]
    return picked


def _nbytes(projection: Projection) -> int:
    """Stored bytes of a weight, with the scales and zero points that are its own operands."""
    places = projection.operands
    total = 0
    for index in (places.weight, places.scale, places.zero_point):
        value = projection.node.inputs[index] if index is not None and index < len(projection.node.inputs) else None
        # A weight that the graph dequantises is the first operand of what does it.
        while value is not None and value.const_value is None and (producer := value.producer()) is not None:
            value = producer.inputs[0] if producer.inputs else None
        if value is not None and value.const_value is not None:
            total += int(value.const_value.nbytes)
    return total


@blames_graph
def _towers(graph: Path, chains: dict[str, _Chain]) -> list[dict[str, Any]]:
    """Fill ``chains``, and describe each stack of attention sublayers."""
    from gatenorm_export.graphs import load_graph

    with silenced():
        model = load_graph(graph)
        check_shapes(graph)
    from onnx_ir.passes.common import ShapeInferencePass

    from graph_passes import Dataflow, InlineAttentionFunctions, find_attention

    InlineAttentionFunctions()(model)
    with silenced():
        # Some graphs contradict their own shapes; what cannot be inferred stays unknown.
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    try:
        flow = Dataflow(model)
        found = find_attention(model, flow)
    except ValueError as error:
        raise InputError(f"{graph}: {error}") from error
    lost = next((no for no in found.unmatched if no.layer is not None), None)
    if lost is not None:
        raise InputError(f"{graph}: layer {lost.layer} cannot be scored, {lost}")
    described: dict[str, list[dict[str, int]]] = {}
    for site in found.sites:
        name = f"{TOWER_PREFIXES[site.kind]}.{site.layer}"
        # The branches of a merged decoder have the same layers and weights.
        if f"{name}.query" in chains:
            continue
        heads = _chains_of(graph, site, flow, name, chains)
        described.setdefault(site.kind, []).append(
            {
                "layer": site.layer,
                "n_heads": len(heads.query),
                "n_kv_heads": len(heads.key),
                "head_dim": heads.key.shape[1],
                "d_model": chains[f"{name}.query"].d_model,
            }
        )
    if not described:
        raise InputError(f"{graph}: no attention was found in it; `gatenorm inspect` says what was seen")
    towers = []
    for kind, layers in described.items():
        layers.sort(key=lambda layer: layer["layer"])
        first = layers[0]
        other = next((layer for layer in layers if layer["d_model"] != first["d_model"]), None)
        if other is not None:
            raise RefusedError(
                f"{graph}: layer {first['layer']} is {first['d_model']} wide and layer {other['layer']} "
                f"{other['d_model']}; a graph with several models in it is not scored, export them one by one"
            )
        towers.append(
            {
                "name": "" if kind == "self" else kind,
                "prefix": TOWER_PREFIXES[kind],
                "n_layers": found.n_layers if kind == "self" else found.n_cross,
                **{key: first[key] for key in ("d_model", "n_heads", "n_kv_heads", "head_dim")},
                "layers": layers,
            }
        )
    return towers


def _chains_of(graph: Path, site: AttentionSite, flow: Dataflow, name: str, chains: dict[str, _Chain]) -> Heads:
    stream = site.residual.stream
    tracer = ColumnTracer([stream], flow.varies)
    node = site.cores[0].node
    try:
        heads = trace_heads(site.cores, tracer)
        for which, columns in (("query", heads.query), ("key", heads.key)):
            chains[f"{name}.{which}"] = _chain(columns.reshape(-1), tracer, stream, flow, 1)
    except Untraced as error:
        raise InputError(
            f"{graph}: {site}: the query and key weights of node {node.name or node.op_type} cannot be traced: {error}"
        ) from error
    except RecursionError as error:
        raise InputError(f"{graph}: {site}: its weights lie behind too many nodes") from error
    return heads


def _chain(columns: np.ndarray, tracer: ColumnTracer, stream: ir.Value, flow: Dataflow, depth: int) -> _Chain:
    places = [tracer.source(int(column)) for column in columns]
    picks = []
    for index in sorted({index for index, _ in places}):
        projection = tracer.projections[index]
        rows = np.array([row for row, (which, _) in enumerate(places) if which == index])
        own = np.array([column for which, column in places if which == index])
        picks.append((projection, rows, own, _behind(projection, tracer, stream, flow, depth)))
    chain = _Chain(tuple(picks), len(columns))
    if len({projection.depth if behind is None else behind.d_model for projection, _, _, behind in picks}) != 1:
        raise Untraced("its projections read tensors of different widths")
    return chain


def _behind(
    projection: Projection, tracer: ColumnTracer, stream: ir.Value, flow: Dataflow, depth: int
) -> _Chain | None:
    """What a projection reads, where that is another projection of the block's input (low-rank weights, as in MLA)."""
    data = projection.data
    if data is None or not flow.depends([data], stream):
        return None
    columns = tracer.columns(data)
    if columns is None:
        return None
    # All tokens have the same columns, so the first stands for each.
    inner = np.moveaxis(columns.low, projection.axis, -1).reshape(-1, columns.low.shape[projection.axis])[0]
    if len(inner) != projection.depth or not np.array_equal(columns.low, columns.high) or depth >= _DEEPEST_CHAIN:
        raise Untraced(f"what {projection.name} reads is not the block's input, and cannot be followed to it")
    return _chain(inner, tracer, stream, flow, depth + 1)
