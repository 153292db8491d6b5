"""What goes into a bundle, found in a run folder, a folder with a graph, or beside an ONNX file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.bundling.contents import Content
from gatenorm_export.bundling.opening import open_bundle
from gatenorm_export.bundling.public import public_graph, public_run
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import BUNDLED_RECORDS, MANIFEST_NAME, graph_file, graph_manifest
from gatenorm_export.kinds import SPEECH_GRAPHS
from gatenorm_export.records import BundleManifest, ComparisonReport, ExportedGraph, PrunedGraph, RunManifest
from gatenorm_export.run_folder import COMPARISON, engine_file
from gatenorm_export.small_files import inside, read_object

RECORDS, REPORT = BUNDLED_RECORDS, "report"
"""The folders of a bundle for the records of the stages, and for the report of a run."""


@dataclasses.dataclass(frozen=True)
class BundleSource:
    """Where everything lies. ``record`` is the graph's own, where export or prune wrote one, and ``public`` what the
    bundle tells of it, without the folders of this machine.

    ``told`` are the other records and the report, by the names that they get in the bundle. ``engines`` were built by
    the run, and ``repair`` holds what stands in for the removed attention. ``earlier`` is the manifest of the bundle
    that all this is taken from, where it is one.
    """

    graph: Path
    companions: tuple[Path, ...]
    record: ExportedGraph | PrunedGraph | None
    public: ExportedGraph | PrunedGraph | None
    told: dict[str, Content] = dataclasses.field(default_factory=dict)
    engines: tuple[Path, ...] = ()
    repair: Path | None = None
    earlier: BundleManifest | None = None


def find_source(place: Path) -> BundleSource:
    """What a user means by ``place``: a run folder, a folder that holds a graph, an ONNX file, or another bundle.

    Every file of a graph that has a record is held against it.

    Raises:
        InputError: there is no graph, the run is not finished, or a file is not what its record says.
        TamperedError: it is a bundle that was touched.
        RefusedError: the run's own proof failed.
    """
    kind = _kind_of(place)
    if kind == "bundle":
        return _of_bundle(place)
    if kind == "run":
        return _of_run(place)
    if not place.is_dir():
        return _of_graph(graph_file(place))
    return _of_graph(_graph_in(place))


def _kind_of(place: Path) -> str:
    """The kind of the record that a folder has; empty where it has none."""
    path = inside(place, MANIFEST_NAME)
    return str(read_object(path).get("kind", "")) if path.is_file() else ""


def _graph_in(folder: Path) -> Path:
    """The graph of a folder: ``model.onnx``, or the pruned one of a speech model's two."""
    speech = [folder / name for name in SPEECH_GRAPHS.values() if (folder / name).is_file()]
    if not speech:
        return graph_file(folder)
    pruned = [graph for graph in speech if isinstance(graph_manifest(graph, digest_data=False), PrunedGraph)]
    return pruned[0] if pruned else speech[-1]


def _of_graph(graph: Path) -> BundleSource:
    record = graph_manifest(graph)
    companions: tuple[Path, ...] = ()
    if graph.name in SPEECH_GRAPHS.values():
        names = sorted(set(SPEECH_GRAPHS.values()) - {graph.name})
        companions = tuple(graph.with_name(name) for name in names if graph.with_name(name).is_file())
    repair = record.repair if isinstance(record, PrunedGraph) else None
    # The name alone: a record cannot lead out of the graph's folder.
    stand_ins = inside(graph.parent, Path(repair.file).name) if repair is not None else None
    public = public_graph(record) if record is not None else None
    return BundleSource(graph, companions, record, public, repair=stand_ins)


def _of_run(folder: Path) -> BundleSource:
    manifest = RunManifest.load(folder / MANIFEST_NAME)
    if "compare" not in manifest.stages or not (folder / COMPARISON).is_file():
        raise InputError(f"{folder}: the run is not finished; `gatenorm run --out {folder}` goes on where it stopped")
    comparison = ComparisonReport.load(inside(folder, COMPARISON))
    # The name alone: a record cannot lead out of the run's folder.
    source = _of_graph(graph_file(folder / "pruned" / Path(comparison.pruned).name))
    _check_proof(folder, source, comparison)
    if source.record is None:
        raise InputError(f"{source.graph}: has no manifest beside it; `gatenorm run --out {folder}` writes it again")
    engine = engine_file(folder, "pruned")
    run = public_run(folder, source.record)
    records = {f"{RECORDS}/{name}": content for name, content in run.records.items()}
    report = {f"{REPORT}/{name}": content for name, content in run.report.items()}
    return dataclasses.replace(
        source,
        public=run.graph,
        told=records | report,
        engines=(engine,) if "build" in manifest.stages and engine.is_file() else (),
    )


def _of_bundle(folder: Path) -> BundleSource:
    bundle = open_bundle(folder)
    graph = bundle.graph_path
    if graph is None:
        raise InputError(f"{folder}: holds engines alone; bundle the run that it was made from")
    source, record = _of_graph(graph), bundle.record()
    if source.record is None and record is not None:
        # Beside a graph of several, a record has the graph's name; in a bundle it has not.
        source = dataclasses.replace(source, record=record, public=public_graph(record))
    own = f"{RECORDS}/{source.record.kind}.json" if source.record is not None else ""
    return dataclasses.replace(
        source,
        told={
            file.name: Content(file.role, bundle.path(file.name), file.not_reproducible)
            for file in bundle.manifest.files
            if file.name.rpartition("/")[0] in (RECORDS, REPORT) and file.name != own
        },
        engines=tuple(bundle.engine_path(engine) for engine in bundle.manifest.engines),
        earlier=bundle.manifest,
    )


def _check_proof(folder: Path, source: BundleSource, comparison: ComparisonReport) -> None:
    if comparison.pruned_sha256 != sha256_of(source.graph):
        raise InputError(
            f"{source.graph}: is not the graph that {COMPARISON} judged; `gatenorm run --out {folder}` judges it"
        )
    wrong = [engine.engine for engine in comparison.engine_accuracy if engine.passed is False]
    if comparison.faithfulness.passed is False or wrong:
        what = wrong[0] if wrong else "the pruned graph"
        raise RefusedError(f"{folder}: {what} does not compute what it should ({comparison.verdict}); not bundled")
