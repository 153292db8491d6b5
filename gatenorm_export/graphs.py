"""ONNX graphs as files: where they and their manifests lie, and reading one that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.errors import InputError, OutputError, needs
from gatenorm_export.records import ExportedGraph, FileDigest, PrunedGraph

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH_NAME = "model.onnx"
MANIFEST_NAME = "manifest.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Every name under which a tokenizer or its chat template lies in a model folder."""


def graph_file(path: Path) -> Path:
    """The ONNX file that a user means by a file or folder name.

    Raises:
        InputError: there is none.
    """
    graph = path / GRAPH_NAME if path.is_dir() else path
    if not graph.is_file():
        raise InputError(f"{graph}: no such ONNX file; name a .onnx file or a folder that holds {GRAPH_NAME}")
    return graph


def manifest_file(graph: Path) -> Path:
    """The manifest's place: ``manifest.json`` beside a folder's ``model.onnx``, else ``NAME.manifest.json``."""
    return graph.with_name(MANIFEST_NAME if graph.name == GRAPH_NAME else f"{graph.stem}.{MANIFEST_NAME}")


def claim_place(graph: Path) -> None:
    """Make sure that writing ``graph`` and its manifest overwrites nobody else's manifest, such as a run folder's.

    Raises:
        OutputError: the manifest's place is taken by something that export or prune did not write.
    """
    path = manifest_file(graph)
    if not path.exists():
        return
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = "unknown"
    if kind not in {"exported", "pruned"}:
        raise OutputError(f"{path}: is in the way, and not the manifest of a graph; choose another output folder")


def graph_manifest(graph: Path) -> ExportedGraph | PrunedGraph | None:
    """The manifest written beside a graph by export or prune; None for a graph from elsewhere.

    Raises:
        InputError: the manifest is damaged, or one of the graph's files is not the one it describes.
    """
    path = manifest_file(graph)
    if not path.is_file():
        return None
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest ({error}); remove it to treat the graph as a foreign one") from error
    if kind not in {"exported", "pruned"}:
        return None
    record: ExportedGraph | PrunedGraph = (ExportedGraph if kind == "exported" else PrunedGraph).load(path)
    for file in record.files:
        # Tokenizer and config may be edited freely; the graph and its tensors may not.
        if not file.name.startswith(graph.name):
            continue
        found = graph.parent / Path(file.name).name
        if not found.is_file() or FileDigest.of(found, folder=graph.parent).sha256 != file.sha256:
            raise InputError(f"{found}: its sha256 is not the one in {path.name}; export or prune it again")
    return record


def load_graph(graph: Path) -> ir.Model:
    """Read an ONNX file; tensors kept outside it are memory-mapped when they are used.

    Raises:
        MissingPartError: onnx-ir is not installed.
        InputError: damaged, or its external data is missing, too short, or outside the graph's folder.
    """
    with needs("onnx", "reading ONNX"):
        import onnx_ir as ir
    try:
        model = ir.load(graph)
    except Exception as error:
        # Damaged protobuf surfaces as many types; what the user can act on is the same.
        raise InputError(f"{graph}: not a readable ONNX file ({type(error).__name__}); export it again") from error
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            _check_external(graph, name, value.const_value)
    return model


def _check_external(graph: Path, name: str, tensor: ir.ExternalTensor) -> None:
    folder = graph.parent.resolve()
    data = (folder / tensor.location).resolve()
    if not data.is_relative_to(folder):
        raise InputError(f"{graph}: tensor {name} lies at {tensor.location}, outside the graph's folder; refused")
    if not data.is_file():
        raise InputError(f"{graph}: tensor {name} lies in {tensor.location}, which is not there; copy it beside it")
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if data.stat().st_size < end:
        raise InputError(
            f"{data}: truncated, tensor {name} ends at byte {end} of {data.stat().st_size}; copy the file again"
        )
