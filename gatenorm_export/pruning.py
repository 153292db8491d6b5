"""From a graph and a list of layers to the pruned graph: the only file that speaks to graph_passes."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.artifacts import staged_folder
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import GRAPH_NAME, TOKENIZER_FILES, claim_place, graph_manifest, load_graph, manifest_file
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import (
    Convention,
    ExportedGraph,
    FileDigest,
    GraphFacts,
    KVCache,
    ModelSpec,
    PrunedGraph,
    PrunePlan,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionSites, KVNames, Removal

# What tokenizers and runtimes look for beside a graph. Anything else in a source folder is not ours to copy.
_SIDE_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
# protobuf refuses messages of 2 GiB; the graph itself needs some of that room.
_INLINE_LIMIT_BYTES = 1_900_000_000


@dataclasses.dataclass(frozen=True)
class GraphDescription:
    """An ONNX graph as the other stages need to know it, without its tensors."""

    facts: GraphFacts
    n_layers: int
    kept: tuple[int, ...]
    unmatched: tuple[str, ...]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Layers that an earlier pruning took out, by the graph's own metadata."""
        return tuple(layer for layer in range(self.n_layers) if layer not in self.kept)


def describe_graph(graph: Path) -> GraphDescription:
    """Find the attention sublayers of an ONNX file and count what can be counted.

    Raises:
        InputError: not an ONNX file, or pruned by something that did not keep its metadata right.
    """
    model, found = _analyse(graph)
    return GraphDescription(
        _facts(model, found), found.n_layers, found.layers, tuple(str(reason) for reason in found.unmatched)
    )


def prune_graph(
    graph: Path,
    output: Path,
    *,
    plan: PrunePlan | None = None,
    layers: tuple[int, ...] = (),
    kv_names: KVNames = "dense",
    plan_sha256: str | None = None,
    progress: Progress | None = None,
) -> PrunedGraph:
    """Remove attention sublayers from an ONNX file.

    ``output`` is a folder (then the graph is ``model.onnx`` in it, with the source's tokenizer and config beside it) or
    a file name ending in ``.onnx``. The same inputs give the same bytes. Tensors stay in the file when they were in the
    source's, and go to ``NAME.data`` beside it when the source kept them outside or they pass protobuf's limit.

    Raises:
        InputError: the graph is damaged or its manifest does not fit it.
        RefusedError: the plan does not fit the graph, or a layer cannot be removed.
        OutputError: the result cannot be written.
    """
    progress = progress or Quiet()
    with progress.task("read the graph"):
        parent = graph_manifest(graph)
        model, found = _analyse(graph)
        before = _facts(model, found)

    import onnx_ir as ir

    from graph_passes import SurgeryRefused, remove_attention

    if plan is not None:
        _check_plan(plan, parent, found, graph)
        layers = plan.drop
    with progress.task(f"remove {len(layers)} attention sublayers"):
        try:
            removal = remove_attention(model, layers, kv_names=kv_names)
        except SurgeryRefused as error:
            raise RefusedError(f"{graph}: {error}") from error
    as_file = output.suffix == ".onnx"
    folder, name = (output.parent, output.name) if as_file else (output, GRAPH_NAME)
    if (folder / name).resolve() == graph.resolve():
        raise RefusedError(f"{output}: this is the graph to be pruned; choose another output")
    claim_place(folder / name)
    with progress.task("write the pruned graph"), staged_folder(folder) as staging:
        external = f"{name}.data" if _needs_external_data(model) else None
        ir.save(model, staging / name, external_data=external)
        _check_model(staging / name, graph)
        if not as_file:
            for side in _SIDE_FILES:
                if (graph.parent / side).is_file():
                    shutil.copyfile(graph.parent / side, staging / side)
        record = PrunedGraph(
            convention=plan.convention if plan is not None else Convention(),
            graph=name,
            files=tuple(FileDigest.of(path, folder=staging) for path in sorted(staging.iterdir())),
            parent_sha256=FileDigest.of(graph, folder=graph.parent).sha256,
            parent_path=str(graph.resolve()),
            model=parent.model if parent else None,
            plan_sha256=plan_sha256,
            n_layers=found.n_layers,
            dropped=tuple(sorted(set(range(found.n_layers)) - {site.layer for site in removal.kept})),
            layer_map=_layer_map(removal, found),
            kv_names=kv_names,
            kv_cache=_kv_cache(removal),
            past_length_from=_past_length_source(removal),
            before=before,
            after=_facts(model, dataclasses.replace(found, sites=removal.kept)),
        )
        record.save(staging / manifest_file(Path(name)).name)
    return record


def _analyse(graph: Path) -> tuple[ir.Model, AttentionSites]:
    model = load_graph(graph)
    from graph_passes import find_attention

    try:
        return model, find_attention(model)
    except ValueError as error:
        raise InputError(f"{graph}: {error}") from error


def _check_plan(
    plan: PrunePlan, parent: ExportedGraph | PrunedGraph | None, found: AttentionSites, graph: Path
) -> None:
    if plan.n_layers != found.n_layers:
        hint = f"; not matched: {found.unmatched[0]}" if found.unmatched else ""
        raise RefusedError(
            f"{graph}: the plan is for {plan.n_layers} attention layers, the graph has {found.n_layers}; "
            f"make the plan from the model that the graph was exported from{hint}"
        )
    spec: ModelSpec | None = parent.model if parent else None
    if spec is not None and spec.digest != plan.model_digest:
        raise RefusedError(
            f"{graph}: exported from {spec.name} ({spec.digest[:12]}), but the plan was made from {plan.model_name} "
            f"({plan.model_digest[:12]}); score and plan the model that the graph came from"
        )


def _facts(model: ir.Model, found: AttentionSites) -> GraphFacts:
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    return GraphFacts(
        n_nodes=len(model.graph),
        n_parameters=sum(math.prod(tensor.shape.numpy()) for tensor in tensors),
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        n_attention=len(found.sites),
        kv_bytes_per_token=sum(_bytes_per_token(value) for site in found.sites for value in site.cache.past),
    )


def _bytes_per_token(past: ir.Value) -> int:
    """Bytes that one more token adds to a cache tensor [batch, heads, past, size]: the product of its fixed lengths."""
    if past.shape is None or past.dtype is None:
        return 0
    return int(math.prod(length for length in past.shape if isinstance(length, int)) * past.dtype.itemsize)


def _layer_map(removal: Removal, found: AttentionSites) -> dict[int, int | None]:
    new = {site.layer: index for index, site in enumerate(removal.kept)}
    return {layer: new.get(layer) for layer in range(found.n_layers)}


def _kv_cache(removal: Removal) -> tuple[KVCache, ...]:
    return tuple(
        KVCache(
            layer=site.layer,
            past=tuple(value.name or "" for value in site.cache.past),
            present=tuple(value.name or "" for value in site.cache.present),
            bytes_per_token=sum(_bytes_per_token(value) for value in site.cache.past),
        )
        for site in removal.kept
    )


def _past_length_source(removal: Removal) -> str | None:
    """The input whose shape tells the past length now, where the source had to be moved."""
    for reader in removal.past_length_readers:
        source = reader.inputs[0] if reader.graph is not None else None
        return (source.name or "") if source is not None else "attention_mask"
    return None


def _needs_external_data(model: ir.Model) -> bool:
    import onnx_ir as ir

    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    outside = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    return outside or sum(tensor.nbytes for tensor in tensors) > _INLINE_LIMIT_BYTES


def _check_model(pruned: Path, source: Path) -> None:
    """Run the ONNX checker. It rejects some files that every runtime takes, so such a source is no reason to refuse."""
    import onnx

    try:
        onnx.checker.check_model(str(pruned))
    except onnx.checker.ValidationError as error:
        try:
            onnx.checker.check_model(str(source))
        except onnx.checker.ValidationError:
            return
        raise RefusedError(
            f"{source}: the pruned graph fails the ONNX checker ({error}); nothing was written"
        ) from error
