"""From a graph and a list of layers to the pruned graph: with inspecting.py the only file that runs graph_passes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.artifacts import sha256_of, staged_folder
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.genai_config import CacheNames
from gatenorm_export.graph_checks import blames_graph
from gatenorm_export.graph_description import GraphDescription
from gatenorm_export.graph_repairs import replace_downs, stand_ins_of
from gatenorm_export.graph_storage import compact_weights, share_weights, write_checked
from gatenorm_export.graphs import GRAPH_NAME, claim_place, external_tensors, graph_manifest, load_graph, manifest_file
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.provenance import require_graph
from gatenorm_export.records import (
    Convention,
    ExportedGraph,
    GraphFacts,
    GraphFile,
    KVCache,
    PrunedGraph,
    PrunePlan,
    RepairRecord,
    Weights,
)
from gatenorm_export.repairs import REPAIR_FILE, Repaired, joined_record, repairs_of, save_repairs
from gatenorm_export.side_files import copy_companions, name_in_folder, side_files

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionSite, AttentionSites, Kind, KVNames, Removal


@blames_graph
def describe_graph(graph: Path) -> GraphDescription:
    """Find the attention sublayers of an ONNX file and count what can be counted.

    Raises:
        InputError: not an ONNX file, or pruned by something that did not keep its metadata right.
    """
    model, found = _analyse(graph)
    return GraphDescription(
        _facts(model, found),
        found.n_layers,
        found.layers,
        tuple(str(reason) for reason in found.unmatched),
        found.n_cross,
        found.numbers("cross"),
    )


@blames_graph
def prune_graph(
    graph: Path,
    output: Path,
    *,
    plan: PrunePlan | None = None,
    layers: tuple[int, ...] = (),
    cross: tuple[int, ...] = (),
    kv_names: KVNames = "dense",
    weights: Weights = "compact",
    plan_sha256: str | None = None,
    repaired: Repaired | None = None,
    progress: Progress | None = None,
) -> PrunedGraph:
    """Remove attention sublayers from an ONNX file: the self-attention of ``layers``, the cross-attention of ``cross``.

    ``output`` is a folder (then the graph is ``model.onnx`` in it, with the source's tokenizer and configs beside it)
    or a file name ending in ``.onnx``. Of a speech model the graph keeps its name in a folder, and the other graph is
    copied beside it. A plan for the tower "cross" is one for cross-attention. The same inputs give the same bytes. With
    ``weights`` "compact" tensors stay in the file when they were in the source's, and go to ``NAME.data`` beside it
    when the source kept them outside or they pass protobuf's limit; with "share" the graph points into the source's
    data files and no weight is copied.

    ``repaired`` puts what was fitted in the place of the removed attention; it must be for exactly ``layers``.

    Of the source, the graph's own bytes are held against its manifest, and its data files' sizes; their digests are
    not, because that would read every weight once more. `compare` and `build` check them.

    Raises:
        InputError: the graph is damaged or its manifest does not fit it.
        RefusedError: the plan does not fit the graph, a layer cannot be removed, weights cannot be shared from there.
        OutputError: the result cannot be written; the disk may be too small.
    """
    progress = progress or Quiet()
    with progress.task("read the graph"):
        parent = graph_manifest(graph, digest_data=False)
        model, found = _analyse(graph)
        before = _facts(model, found)
        past_before = _past_names(found.sites)

    from graph_passes import SurgeryRefused, remove_attention

    if plan is not None:
        hint = f"; not matched: {found.unmatched[0]}" if found.unmatched else ""
        n_layers = found.total("cross" if plan.tower == "cross" else "self")
        require_graph(plan, graph, parent, n_layers=n_layers, hint=hint)
        layers, cross = ((), plan.drop) if plan.tower == "cross" else (plan.drop, cross)
    as_file = output.suffix == ".onnx"
    folder, name = (output.parent, output.name) if as_file else (output, name_in_folder(graph))
    _check_place(model, graph, folder / name)
    with progress.task(f"remove {len(layers) + len(cross)} attention sublayers"):
        try:
            stand_ins = stand_ins_of(model, found, repaired) if repaired is not None else {}
            removal = remove_attention(model, layers, cross=cross, kv_names=kv_names, stand_ins=stand_ins)
        except SurgeryRefused as error:
            raise RefusedError(f"{graph}: {error}") from error
    if repaired is not None:
        replace_downs(graph, model, repaired)
    names = CacheNames(past_before, _past_names(removal.kept))
    beside = {} if as_file else side_files(graph, folder / name, names, progress)
    layer_map = _layer_map(removal, found)
    shared = share_weights(model, graph, folder) if weights == "share" else ()
    with progress.task("write the pruned graph"), staged_folder(folder) as staging:
        if weights == "compact":
            compact_weights(model, staging / f"{name}.data")
        write_checked(model, staging / name, graph, data_folder=folder if shared else staging)
        for side, content in beside.items():
            (staging / side).write_bytes(content)
        if not as_file:
            copy_companions(graph, folder, staging)
        digest = sha256_of(graph)
        after = _facts(model, dataclasses.replace(found, sites=removal.kept))
        repair = _write_repair(graph, parent, repaired, staging, name, before.n_parameters - after.n_parameters)
        record = PrunedGraph(
            convention=plan.convention if plan is not None else Convention(),
            tower=parent.tower if parent else "",
            graph=name,
            files=tuple(GraphFile.of(path, folder=staging) for path in sorted(staging.iterdir())),
            weights=weights,
            shared=_shared_files(shared, folder, graph, parent),
            parent_sha256=digest,
            parent_path=str(graph.resolve()),
            ancestors=(digest, *(parent.lineage if isinstance(parent, PrunedGraph) else ())),
            model=parent.model if parent else None,
            plan_sha256=plan_sha256,
            n_layers=found.n_layers,
            dropped=tuple(layer for layer, new in layer_map.items() if new is None),
            dropped_cross=tuple(sorted(set(range(found.n_cross)) - _left(removal, found, "cross"))),
            n_cross=found.n_cross,
            layer_map=layer_map,
            kv_names=kv_names,
            kv_cache=_kv_cache(removal),
            past_length_from=_past_length_source(removal),
            before=before,
            after=after,
            repair=repair,
        )
        record.save(staging / manifest_file(Path(name)).name)
    return record


def _write_repair(
    graph: Path,
    parent: ExportedGraph | PrunedGraph | None,
    repaired: Repaired | None,
    staging: Path,
    name: str,
    removed_parameters: int,
) -> RepairRecord | None:
    """Write every repair that is in the graph now, those of an earlier pruning too, and return their record."""
    earlier = parent.repair if isinstance(parent, PrunedGraph) else None
    if repaired is None and earlier is None:
        return None
    file = REPAIR_FILE if name == GRAPH_NAME else f"{Path(name).stem}.{REPAIR_FILE}"
    kept = repairs_of(graph, earlier) if earlier is not None else {}
    save_repairs(kept | dict(repaired.layers if repaired is not None else {}), staging / file)
    later = repaired.record(file, removed_parameters) if repaired is not None else None
    return joined_record(earlier, later, file) if earlier is not None else later


def _check_place(model: ir.Model, graph: Path, target: Path) -> None:
    """Refuse an output that would replace the source, its data, or somebody else's manifest."""
    ours = {target.resolve(), target.with_name(f"{target.name}.data").resolve()}
    sources = {graph.resolve(), *(Path(tensor.path).resolve() for tensor, _ in external_tensors(model))}
    for path in sorted(ours & sources):
        what = "the graph to be pruned" if path == graph.resolve() else "a data file of the graph to be pruned"
        raise RefusedError(f"{path}: this is {what}; choose another output")
    claim_place(target)


def _shared_files(
    shared: tuple[Path, ...], folder: Path, graph: Path, parent: ExportedGraph | PrunedGraph | None
) -> tuple[GraphFile, ...]:
    """The shared data files, with the digests that the parent's manifest has of them; none is computed here."""
    known: dict[Path, str | None] = {}
    if parent is not None:
        files = (*parent.files, *(parent.shared if isinstance(parent, PrunedGraph) else ()))
        known = {(graph.parent / file.name).resolve(): file.sha256 for file in files}
    return tuple(
        GraphFile(name=path.relative_to(folder.resolve()).as_posix(), bytes=path.stat().st_size, sha256=known.get(path))
        for path in shared
    )


def _analyse(graph: Path) -> tuple[ir.Model, AttentionSites]:
    model = load_graph(graph)
    from graph_passes import InlineAttentionFunctions, find_attention

    try:
        InlineAttentionFunctions()(model)
        return model, find_attention(model)
    except ValueError as error:
        raise InputError(f"{graph}: {error}") from error


def _facts(model: ir.Model, found: AttentionSites) -> GraphFacts:
    graphs = tuple(model.graphs())
    held = [(value, value.const_value) for graph in graphs for value in graph.initializers.values()]
    # Text has no width; what an ONNX file keeps of it are labels.
    weights = [(value, tensor) for value, tensor in held if tensor is not None and not tensor.dtype.is_string()]
    return GraphFacts(
        n_nodes=sum(len(graph) for graph in graphs),
        n_parameters=sum(_packed_weights(value) or math.prod(tensor.shape.numpy()) for value, tensor in weights),
        weight_bytes=sum(tensor.nbytes for _, tensor in weights),
        n_attention=len({(site.kind, site.layer) for site in found.sites}),
        kv_bytes_per_token=sum(_bytes_per_token(site) for site in _self_attention(found.sites).values()),
    )


def _packed_weights(value: ir.Value) -> int:
    """How many weights a tensor of bytes holds that an operator takes several to the byte; 0 where none does."""
    reader = next((node for node, place in value.uses() if node.op_type == "MatMulNBits" and place == 1), None)
    return reader.attributes.get_int("K", 0) * reader.attributes.get_int("N", 0) if reader is not None else 0


def _bytes_per_token(site: AttentionSite) -> int:
    """Bytes that one more token adds to a layer's cache tensors [batch, heads, past, size].

    That is the product of their fixed lengths. Batch and past are open; a third open length is the size of a head
    (genai leaves it open), which the attention operator tells.
    """
    from graph_passes import heads_of

    total = 0
    for past in site.cache.past:
        if past.shape is None or past.dtype is None:
            continue
        fixed = [length for length in past.shape if isinstance(length, int)]
        if past.shape.rank() - len(fixed) > 2:
            fixed.append(heads_of(site).head_dim or 1)
        total += int(math.prod(fixed) * past.dtype.itemsize)
    return total


def _layer_map(removal: Removal, found: AttentionSites) -> dict[int, int | None]:
    """From the number of every self-attention layer to its number among those left, which the unmatched are too."""
    new = {layer: index for index, layer in enumerate(sorted(_left(removal, found, "self")))}
    return {layer: new.get(layer) for layer in range(found.n_layers)}


def _left(removal: Removal, found: AttentionSites, kind: Kind) -> set[int]:
    """The numbers of the sublayers of a kind that are in the pruned graph, matched or not."""
    return {entry.layer for entry in found.staying(removal.kept) if entry.kind == kind and entry.layer is not None}


def _self_attention(sites: tuple[AttentionSite, ...]) -> dict[int, AttentionSite]:
    """One site of each self-attention layer; in a merged decoder both branches of the If have the same caches."""
    return {site.layer: site for site in sites if site.kind == "self"}


def _past_names(sites: tuple[AttentionSite, ...]) -> dict[int, tuple[str, ...]]:
    return {
        layer: tuple(value.name or "" for value in site.cache.past)
        for layer, site in _self_attention(sites).items()
        if site.cache.past
    }


def _kv_cache(removal: Removal) -> tuple[KVCache, ...]:
    return tuple(
        KVCache(
            layer=layer,
            past=tuple(value.name or "" for value in site.cache.past),
            present=tuple(value.name or "" for value in site.cache.present),
            bytes_per_token=_bytes_per_token(site),
        )
        for layer, site in _self_attention(removal.kept).items()
    )


def _past_length_source(removal: Removal) -> str | None:
    """The input whose shape tells the past length now, where the source had to be moved."""
    gone = {value for site in removal.removed for value in site.cache.past}
    return next((move.source for move in removal.moves if move.gone in gone), None)
