"""What a graph takes and gives, read off the ONNX file itself: tensors, and which of them carry the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import external_tensors, load_graph
from gatenorm_export.precision.graph_changes import precision_of
from gatenorm_export.records import BundleGraph, CacheTensor, TensorSpec
from gatenorm_export.records.bundle import Shape

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionSites

DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BFLOAT16": "bfloat16",
    "FLOAT16": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""ONNX's names of element types -> numpy's; ONNX Runtime writes ONNX's small."""


@dataclasses.dataclass(frozen=True)
class GraphInterface:
    """``graph`` under its name in the bundle; ``data`` are the files its tensors lie in, by their name beside it.

    ``caches`` are those of self-attention, in the order of the inputs; ``no_caches`` says why they cannot be told.
    """

    graph: BundleGraph
    data: dict[str, Path]
    n_layers: int
    kept: tuple[int, ...]
    caches: tuple[CacheTensor, ...]
    no_caches: str = ""


def read_interface(path: Path, name: str) -> GraphInterface:
    """Read a graph's inputs, outputs, caches and data files; no weight is read. ``name`` is what it is called.

    Raises:
        MissingPartError: onnx-ir is not installed.
        InputError: not an ONNX file, its data is missing or outside its folder, or an input is no tensor.
    """
    model = load_graph(path)
    from graph_passes import InlineAttentionFunctions, find_attention

    inputs = tuple(_spec(value, path) for value in model.graph.inputs if not value.is_initializer())
    outputs = tuple(_spec(value, path) for value in model.graph.outputs)
    graph = BundleGraph(
        file=name,
        sha256=sha256_of(path),
        inputs=inputs,
        outputs=outputs,
        precision=_precision(model, path),
        opset=model.opset_imports.get("", 0),
        contrib_operators=_contrib(model),
    )
    data = {str(tensor.location): Path(tensor.path).resolve() for tensor, _ in external_tensors(model)}
    try:
        InlineAttentionFunctions()(model)
        found = find_attention(model)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    caches, reason = _caches(found, graph)
    return GraphInterface(graph, data, found.n_layers, found.layers, caches, reason)


def _spec(value: ir.Value, path: Path) -> TensorSpec:
    if value.dtype is None or value.shape is None or value.dtype.name not in DTYPES:
        raise InputError(f"{path}: {value.name} is no tensor of a known type and rank; export the graph again")
    name = value.name or ""
    return TensorSpec(name=name, dtype=DTYPES[value.dtype.name], shape=_shape(value, name))


def _shape(value: ir.Value, name: str) -> Shape:
    assert value.shape is not None
    # Some exporters write 0 or -1 where they know nothing.
    return tuple(
        length if isinstance(length, int) and length > 0 else str(getattr(length, "value", None) or f"{name}[{axis}]")
        for axis, length in enumerate(value.shape)
    )


def _precision(model: ir.Model, path: Path) -> str:
    try:
        return precision_of(model, path)
    except RefusedError:
        # Engines do without such a graph, ONNX Runtime may not.
        return "other"


def _contrib(model: ir.Model) -> tuple[str, ...]:
    return tuple(sorted({node.op_type for graph in model.graphs() for node in graph if node.domain == "com.microsoft"}))


def _caches(found: AttentionSites, graph: BundleGraph) -> tuple[tuple[CacheTensor, ...], str]:
    """The caches of self-attention, or why they cannot be told."""
    from graph_passes import AttentionSite, heads_of

    known = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
    batch = next((spec.shape[0] for spec in graph.inputs if spec.name == "input_ids" and spec.shape), None)
    caches: dict[str, CacheTensor] = {}
    for site in found.staying(found.sites):
        if site.kind != "self" or site.layer is None or not site.cache.past:
            continue
        if len(site.cache.past) != len(site.cache.present):
            return (
                (),
                f"layer {site.layer} has other numbers of cache inputs and outputs",
            )
        size = heads_of(site).head_dim if isinstance(site, AttentionSite) else None
        for index, (past, present) in enumerate(zip(site.cache.past, site.cache.present, strict=True)):
            before, after = known.get(past.name or ""), known.get(present.name or "")
            if before is None or after is None:
                return (), f"the cache of layer {site.layer} is no input and output of the graph"
            axes = _axes(before, after, batch)
            if axes is None:
                return (), f"{before.name} {list(before.shape)} does not tell which of its lengths is the past"
            caches[before.name] = CacheTensor(
                layer=site.layer,
                past=before.name,
                present=after.name,
                role=_role(index, len(site.cache.past)),
                dtype=before.dtype,
                shape=_closed(before.shape, axes, size),
                batch_axis=axes[0],
                length_axis=axes[1],
            )
    if found.layers and not caches:
        return (), "its attention keeps no cache; it takes whole sequences only"
    order = [spec.name for spec in graph.inputs]
    return tuple(sorted(caches.values(), key=lambda cache: order.index(cache.past))), ""


def _role(index: int, of: int) -> Literal["key", "value", "other"]:
    return ("key", "value")[index] if of == 2 else "other"


def _axes(past: TensorSpec, present: TensorSpec, batch: int | str | None) -> tuple[int, int] | None:
    """Which axes are the sequences and the past.

    The batch is the axis that is called as that of the tokens, or else the first that is open. The past is the open
    axis whose name changes from past to present; of a key or value [batch, heads, past, size] without names, the third.
    """
    opened = [axis for axis, length in enumerate(past.shape) if isinstance(length, str)]
    first = [axis for axis in opened if past.shape[axis] == batch] or (opened if isinstance(batch, str) else [0])
    if not first:
        return None
    rest = [axis for axis in opened if axis != first[0]]
    if len(rest) > 1:
        changing = [axis for axis in rest if not _same_length(past, present, axis)]
        rest = changing if len(changing) == 1 else [2] if len(past.shape) == 4 and 2 in rest else rest
    return (first[0], rest[0]) if len(rest) == 1 else None


def _same_length(past: TensorSpec, present: TensorSpec, axis: int) -> bool:
    unnamed = past.shape[axis] == f"{past.name}[{axis}]"
    return len(past.shape) != len(present.shape) or unnamed or past.shape[axis] == present.shape[axis]


def _closed(shape: Shape, axes: tuple[int, int], size: int | None) -> Shape:
    """The shape with the size of a head where the exporter left it open and the attention tells it."""
    last = len(shape) - 1
    if size is None or last in axes or isinstance(shape[last], int):
        return shape
    return (*shape[:last], size)
