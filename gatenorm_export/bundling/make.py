"""Make a bundle: one folder that is all a server needs, written whole or not at all."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from pydantic import ValidationError

from gatenorm_export.artifacts import replaced_folder
from gatenorm_export.bundling.agreement import check_agreement
from gatenorm_export.bundling.asking import Question, ask
from gatenorm_export.bundling.contents import Contents
from gatenorm_export.bundling.contradictions import contradiction, layer_numbers
from gatenorm_export.bundling.decoding import decoding_of
from gatenorm_export.bundling.engines import FoundEngine, find_engines
from gatenorm_export.bundling.interface import GraphInterface, read_interface
from gatenorm_export.bundling.licence import licence_of, licence_texts
from gatenorm_export.bundling.opening import Bundle, sealed
from gatenorm_export.bundling.optimum_caches import optimum_reason
from gatenorm_export.bundling.place import check_place
from gatenorm_export.bundling.public import public_name
from gatenorm_export.bundling.side import GenaiFiles, SideFiles, find_side_files, genai_files
from gatenorm_export.bundling.source import RECORDS, BundleSource, find_source
from gatenorm_export.bundling.stepping import check_session, open_graph
from gatenorm_export.bundling.tokenizer import TOKENIZER, genai_note, readable_tokenizer
from gatenorm_export.comparing.failures import runtime_failures
from gatenorm_export.errors import InputError, RefusedError, UsageError
from gatenorm_export.graphs import MANIFEST_NAME, manifest_file
from gatenorm_export.kinds import KindName, kind_of, kind_of_graph
from gatenorm_export.model_configs import CONFIG
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import (
    BundleClient,
    BundleFile,
    BundleManifest,
    BundleModel,
    BundleProbe,
    Convention,
    Decoding,
    ModelSpec,
    PrunedGraph,
)
from gatenorm_export.side_files import name_in_folder


@dataclasses.dataclass(frozen=True)
class BundleRequest:
    """What a user asks of a bundle.

    ``source`` is a run folder, a folder with a graph, an ONNX file, or a bundle; ``engines`` are added to its own.
    ``beside`` is a folder that lends tokenizer, configs and licence where the graph's own folder has none.
    """

    source: Path
    out: Path
    engines: tuple[Path, ...] = ()
    with_engines: bool = True
    with_onnx: bool = True
    tokenizer: bool = True
    beside: Path | None = None
    name: str | None = None


def make_bundle(request: BundleRequest, *, progress: Progress | None = None) -> BundleManifest:
    """Write the bundle to ``request.out``, and return its manifest.

    The same inputs give the same bytes; a file that another run of the same would make otherwise says why.

    A bundle that is there already is replaced as a whole; any other folder that is not empty is refused.

    Raises:
        MissingPartError: onnx-ir or ONNX Runtime is not installed.
        UsageError: the name that was asked for is none.
        InputError: something is missing or damaged, such as the tokenizer.
        RefusedError: the run's own proof failed, the graph contradicts itself, or an engine is of another graph.
        OutputError: the bundle cannot be written there.
    """
    progress = progress or Quiet()
    check_place(request.out, request.source)
    if request.name is not None and request.name != _plain(request.name):
        raise UsageError(f"--name {request.name!r}: use letters, digits, dots, dashes and /, as a folder may be called")
    with progress.task("read the graph"):
        gathered = _gather(request)
    with progress.task("probe the graph"):
        probe = _probe(gathered)
    with replaced_folder(request.out) as staging:
        # Looked at again: the folder may have been filled while the graph was read.
        check_place(request.out, request.source)
        contents = _contents(request, gathered)
        manifest, text = sealed(_checked(request, gathered, probe, contents.write(staging, progress)))
        (staging / MANIFEST_NAME).write_bytes(text)
        check_agreement(request.source, Bundle(staging, manifest), gathered.interface)
    return manifest


@dataclasses.dataclass(frozen=True)
class _Gathered:
    """Everything that a bundle is made of, read and checked."""

    source: BundleSource
    interface: GraphInterface
    companions: tuple[GraphInterface, ...]
    task: KindName
    side: SideFiles
    folders: tuple[Path, ...]
    decoding: Decoding | None
    no_decoding: str
    genai: GenaiFiles
    engines: tuple[FoundEngine, ...]

    @property
    def model(self) -> ModelSpec | None:
        """The source model, where the graph's record names it."""
        return self.source.record.model if self.source.record is not None else None


def _gather(request: BundleRequest) -> _Gathered:
    source = find_source(request.source)
    record = source.record
    interface = read_interface(source.graph, name_in_folder(source.graph))
    companions = tuple(read_interface(path, path.name) for path in source.companions)
    spec = record.model if record is not None else None
    kind = kind_of(spec, record.tower) if record is not None and spec is not None else kind_of_graph(source.graph)
    folders = _folders(source, spec, request.beside)
    side = find_side_files(folders, interface.graph.file)
    _check_side(request, source, side, kind.kind.name)
    decoding = (
        decoding_of(interface, side.told)
        if kind.kind.name == "decoder"
        else f"it is no decoder, its task is {kind.kind.name}"
    )
    told = decoding if isinstance(decoding, Decoding) else None
    paths = (*(source.engines if request.with_engines else ()), *request.engines)
    return _Gathered(
        source=source,
        interface=interface,
        companions=companions,
        task=kind.kind.name,
        side=side,
        folders=folders,
        decoding=told,
        no_decoding="" if isinstance(decoding, Decoding) else decoding,
        genai=genai_files(side, interface.graph.file, told, interface.n_layers),
        engines=find_engines(paths, interface),
    )


def _folders(source: BundleSource, spec: ModelSpec | None, beside: Path | None) -> tuple[Path, ...]:
    """Where to look for what lies beside a graph: its own folder, the one that was named, the checkpoint's."""
    if beside is not None and not beside.is_dir():
        raise InputError(f"{beside}: no such folder; name the one that holds tokenizer and configs")
    folders = [source.graph.parent, *([beside] if beside is not None else [])]
    # A bundled record has the checkpoint's name without its folder, which may mean something else where we are now.
    if spec is not None and spec.source != "gguf" and Path(spec.path).is_absolute() and Path(spec.path).is_dir():
        folders.append(Path(spec.path))
    return tuple(folders)


def _check_side(request: BundleRequest, source: BundleSource, side: SideFiles, task: KindName) -> None:
    if task != "vision" and request.tokenizer and not side.tokenizer:
        raise InputError(
            f"{source.graph.parent}: holds no tokenizer, which a server needs to take text; name its folder with "
            "--beside, or for clients that send token numbers use `gatenorm bundle --no-tokenizer`"
        )
    if task == "decoder" and not side.configs and not side.told.genai:
        raise InputError(
            f"{source.graph.parent}: holds no config.json, which tells how a sequence ends; name the model's folder "
            "with --beside"
        )
    if not request.with_onnx and not (request.engines or (request.with_engines and source.engines)):
        raise InputError(f"{request.source}: without the graph and without an engine there is nothing to serve")


def _probe(gathered: _Gathered) -> BundleProbe | None:
    """What the graph answers now; a graph that contradicts itself is not bundled."""
    graph = gathered.interface.graph
    session = open_graph(gathered.source.graph)
    check_session(session, graph)
    path, told = gathered.source.graph, gathered.side.told
    with runtime_failures(str(path)):
        result = ask(Question(gathered.task, path, session, graph, gathered.decoding, told))
    if isinstance(result, str):
        return None
    if not result.passed:
        raise RefusedError(f"{path}: {result.finding}; a server would get wrong results from it")
    return result.probe


def _contents(request: BundleRequest, gathered: _Gathered) -> Contents:
    contents, source, side = Contents(), gathered.source, gathered.side
    if request.with_onnx:
        paths = (source.graph, *source.companions)
        for interface, path in zip((gathered.interface, *gathered.companions), paths, strict=True):
            contents.add(interface.graph.file, "graph", path)
            contents.add_all("weights", interface.data)
        if source.repair is not None:
            # Beside the graph, where every verb looks for it.
            contents.add(source.repair.name, "record", source.repair)
    for engine in gathered.engines:
        why = engine.entry.not_reproducible
        contents.add(engine.entry.file, "engine", engine.path, why)
        contents.add(engine.entry.record, "record", engine.record.to_json().encode(), why)
    for name, path in side.tokenizer.items() if request.tokenizer else ():
        contents.add(name, "tokenizer", readable_tokenizer(path) if name == TOKENIZER else path)
    contents.add_all("config", side.configs)
    if request.with_onnx:
        for name, content in gathered.genai.files.items():
            contents.add(name, "config", content)
    contents.add_all("licence", licence_texts(gathered.folders))
    if source.public is not None:
        contents.add(f"{RECORDS}/{source.public.kind}.json", "record", source.public.to_json().encode())
    for name, told in source.told.items():
        contents.add(name, told.role, told.source, told.not_reproducible)
    return contents


def _checked(
    request: BundleRequest, gathered: _Gathered, probe: BundleProbe | None, files: tuple[BundleFile, ...]
) -> BundleManifest:
    """The manifest, held against the graph as `verify` will.

    Raises:
        InputError: the graph's own record says what cannot be, or what is not so.
    """
    graph = gathered.source.graph
    try:
        manifest = _manifest(request, gathered, probe, files)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{manifest_file(graph)}: says what no graph has ({where}: {first['msg']})") from error
    finding = contradiction(manifest, gathered.interface) if manifest.graph is not None else None
    if finding is not None:
        raise InputError(f"{manifest_file(graph)}: is not true of {graph.name}: {finding}; prune or export it again")
    return manifest


def _manifest(
    request: BundleRequest, gathered: _Gathered, probe: BundleProbe | None, files: tuple[BundleFile, ...]
) -> BundleManifest:
    record, interface, spec = gathered.source.public, gathered.interface, gathered.model
    pruned = record if isinstance(record, PrunedGraph) else None
    earlier = gathered.source.earlier
    told = (earlier.licence, earlier.licence_source) if earlier is not None else None
    licence = told or licence_of(spec, gathered.folders)
    name = earlier.name if earlier is not None else public_name(spec) if spec is not None else "model"
    return BundleManifest(
        convention=record.convention if record is not None else Convention(),
        name=request.name or _plain(name),
        task=gathered.task,
        licence=licence[0] if licence is not None else None,
        licence_source=licence[1] if licence is not None else None,
        model=BundleModel(name=name, architecture=spec.architecture, digest=spec.digest) if spec is not None else None,
        parent_sha256=pruned.parent_sha256 if pruned is not None else None,
        graph_sha256=interface.graph.sha256,
        plan_sha256=pruned.plan_sha256 if pruned is not None else None,
        n_layers=pruned.n_layers if pruned is not None else interface.n_layers,
        dropped=pruned.dropped if pruned is not None else _dropped(interface),
        layer_map=pruned.layer_map if pruned is not None else layer_numbers(interface.n_layers, interface.kept),
        kv_names=pruned.kv_names if pruned is not None else "dense",
        graph=interface.graph if request.with_onnx else None,
        companions=tuple(found.graph for found in gathered.companions) if request.with_onnx else (),
        engines=tuple(engine.entry for engine in gathered.engines),
        decoding=gathered.decoding,
        no_decoding=gathered.no_decoding,
        clients=_clients(request, gathered),
        probe=probe,
        files=files,
    )


def _dropped(interface: GraphInterface) -> tuple[int, ...]:
    return tuple(layer for layer in range(interface.n_layers) if layer not in interface.kept)


def _clients(request: BundleRequest, gathered: _Gathered) -> tuple[BundleClient, ...]:
    absent = "" if request.with_onnx else "the bundle holds engines alone"
    optimum = "" if CONFIG in gathered.side.configs else f"it reads {CONFIG}, and there is none"
    if gathered.task == "decoder" and not optimum:
        optimum = optimum_reason(gathered.interface, gathered.side.told)
    record = gathered.source.record
    if gathered.task == "speech" and isinstance(record, PrunedGraph) and record.tower == "decoder":
        optimum = "its ORTModelForSpeechSeq2Seq does not run a decoder without some of its caches"
    genai = absent or gathered.genai.reason
    tokenizer = gathered.side.tokenizer.get(TOKENIZER) if request.tokenizer and not genai else None
    return (
        BundleClient(name="optimum", reason=absent or optimum),
        BundleClient(name="onnxruntime-genai", reason=genai, note=genai_note(tokenizer) if tokenizer else ""),
    )


def _plain(name: str) -> str:
    """A name that a folder may have on any system."""
    parts = (re.sub(r"[^\w.+-]+", "-", part).strip(".-") for part in name.split("/"))
    return "/".join(part for part in parts if part) or "model"
