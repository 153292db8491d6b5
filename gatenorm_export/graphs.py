"""ONNX graphs as files: where they and their manifests lie, and reading one that nobody vouches for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import InputError, OutputError, needs
from gatenorm_export.graph_checks import check_contents, check_graph_file
from gatenorm_export.records import ExportedGraph, FileDigest, PrunedGraph
from gatenorm_export.records.graph import GraphFile
from gatenorm_export.small_files import inside, read_object

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH_NAME = "model.onnx"
MANIFEST_NAME = "manifest.json"
_FILES_SHOWN = 4
BUNDLED_RECORDS = "records"
"""The folder of a bundle that keeps the record of its graph, and those of the stages before."""
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""What a model folder says of the model and of what it takes."""

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
    if graph.is_file():
        return graph
    others = sorted(other.name for other in path.glob("*.onnx")) if path.is_dir() else []
    if not others:
        raise InputError(f"{graph}: no such ONNX file; name a .onnx file or a folder that holds {GRAPH_NAME}")
    more = f" and {len(others) - _FILES_SHOWN} more" if len(others) > _FILES_SHOWN else ""
    shown = ", ".join(others[:_FILES_SHOWN]) + more
    raise InputError(f"{graph}: no such ONNX file; the folder holds {shown}: name the one that is meant")


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
        kind = read_object(path).get("kind")
    except InputError:
        kind = "unknown"
    if kind not in {"exported", "pruned"}:
        raise OutputError(f"{path}: is in the way, and not the manifest of a graph; choose another output folder")


def graph_manifest(graph: Path, *, digest_data: bool = True) -> ExportedGraph | PrunedGraph | None:
    """The manifest written beside a graph by export or prune, or kept in its bundle; None for one from elsewhere.

    The graph's own bytes are always held against their digest. Its data files, its own and those it shares, are held
    against their sizes and, with ``digest_data``, against the digests that the manifest has: that reads them whole,
    so pruning does without, and comparing and building do not.

    Raises:
        InputError: the manifest is damaged, or one of the graph's files is not the one it describes.
    """
    path = inside(graph.parent, manifest_file(graph).name)
    if not path.is_file():
        return None
    try:
        kind = read_object(path).get("kind")
    except InputError as error:
        raise InputError(f"{error}; remove it to treat the graph as a foreign one") from error
    if kind == "bundle":
        found = [name for name in ("pruned", "exported") if (path.parent / BUNDLED_RECORDS / f"{name}.json").is_file()]
        kind, path = (found[0], path.parent / BUNDLED_RECORDS / f"{found[0]}.json") if found else ("", path)
    if kind not in {"exported", "pruned"}:
        return None
    record: ExportedGraph | PrunedGraph = (ExportedGraph if kind == "exported" else PrunedGraph).load(path)
    for file in record.files:
        # Tokenizer and config may be edited freely; the graph and its tensors may not.
        if file.name.startswith(graph.name):
            place = inside(graph.parent, Path(file.name).name)
            _check_file(place, file, path, digest=digest_data or file.name == graph.name)
    for shared in record.shared if isinstance(record, PrunedGraph) else ():
        _check_file(inside(graph.parent, shared.name), shared, path, digest=digest_data)
    return record


def _check_file(path: Path, expected: FileDigest | GraphFile, manifest: Path, *, digest: bool) -> None:
    advice = "export or prune it again"
    if not path.is_file():
        raise InputError(f"{path}: is not there, but {manifest.name} counts on it; copy it back, or {advice}")
    if path.stat().st_size != expected.bytes:
        raise InputError(f"{path}: its size is not the one in {manifest.name}; {advice}")
    if digest and expected.sha256 is not None and sha256_of(path) != expected.sha256:
        raise InputError(f"{path}: its sha256 is not the one in {manifest.name}; {advice}")


def load_graph(graph: Path) -> ir.Model:
    """Read an ONNX file; tensors kept outside it are memory-mapped when they are used.

    Raises:
        MissingPartError: onnx-ir is not installed.
        InputError: damaged, or its external data is missing, too short, or outside the graph's folder.
    """
    with needs("onnx", "reading ONNX"):
        import onnx_ir as ir
    size = check_graph_file(graph)
    try:
        model = ir.load(graph)
    except Exception as error:
        # Damaged protobuf surfaces as many types; what the user can act on is the same.
        raise InputError(f"{graph}: not a readable ONNX file ({type(error).__name__}); export it again") from error
    check_contents(model, graph, size)
    folder = graph.parent.resolve()
    files: dict[str, Path] = {}
    for tensor, replace in external_tensors(model):
        location = str(tensor.location)
        if location not in files:
            files[location] = _data_file(graph, location, tensor.name)
        data = files[location]
        _check_length(data, tensor)
        if data != folder / location:
            # A hub's cache links each file to a store of blobs. ONNX Runtime takes that; onnx_ir wants real files.
            base = folder if data.is_relative_to(folder) else data.parent
            replace(moved(tensor, base, data.relative_to(base).as_posix(), tensor.offset or 0))
    return model


def data_files(graph: Path) -> list[Path]:
    """Every file that a graph keeps tensors in, itself apart, each once and sorted.

    Raises:
        InputError: see :func:`load_graph`.
    """
    return sorted({Path(tensor.path).resolve() for tensor, _ in external_tensors(load_graph(graph))})


def external_tensors(model: ir.Model) -> Iterator[tuple[ir.ExternalTensor, Callable[[ir.TensorProtocol], None]]]:
    """Every tensor that lies outside the graph's file, each with a function that puts another in its place.

    Initializers of subgraphs and tensors in attributes count too.
    """
    import onnx_ir as ir

    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value, _setter(value)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in tuple(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value, _attribute_setter(node, name)


def _setter(value: ir.Value) -> Callable[[ir.TensorProtocol], None]:
    def replace(tensor: ir.TensorProtocol) -> None:
        value.const_value = tensor

    return replace


def _attribute_setter(node: ir.Node, name: str) -> Callable[[ir.TensorProtocol], None]:
    import onnx_ir as ir

    def replace(tensor: ir.TensorProtocol) -> None:
        node.attributes[name] = ir.AttrTensor(name, tensor)

    return replace


def moved(tensor: ir.TensorProtocol, folder: Path, location: str, offset: int) -> ir.ExternalTensor:
    """The same tensor at another place: in the file ``location`` below ``folder``, from ``offset`` on."""
    import onnx_ir as ir

    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir=folder,
    )


def _data_file(graph: Path, location: str, tensor: str) -> Path:
    """The real file behind a location, checked: in the graph's folder, there, and nobody else's.

    The folder is that of the graph's name or, where the graph is a symbolic link, that of the file behind it. This is
    what ONNX Runtime allows.
    """
    try:
        data = (graph.parent / location).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{graph}: tensor {tensor} lies at {location}, which is no place ({error})") from error
    if not any(data.is_relative_to(folder) for folder in (graph.parent.resolve(), graph.resolve().parent)):
        raise InputError(f"{graph}: tensor {tensor} lies at {location}, outside the graph's folder; refused")
    if not data.is_file():
        raise InputError(f"{graph}: tensor {tensor} lies in {location}, which is not there; copy it beside it")
    links = data.stat().st_nlink
    if links > 1:
        raise InputError(
            f"{data}: has {links} hard links, which ONNX loaders take for an attack; put a copy in its place"
        )
    return data


def _check_length(data: Path, tensor: ir.ExternalTensor) -> None:
    end, size = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes), data.stat().st_size
    if size < end:
        raise InputError(f"{data}: truncated, tensor {tensor.name} ends at byte {end} of {size}; copy the file again")
