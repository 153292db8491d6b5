"""``gatenorm build MODEL.onnx...``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.cli.batches import BATCH_NAME, batch_folder, batch_table, names_of, remembering
from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.engine_options import add_build, add_profiles, build_options, shape_request
from gatenorm_export.cli.engine_view import built_line, preparation_lines
from gatenorm_export.cli.executor_options import add_executor, check_executor_options
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_flavour, add_output
from gatenorm_export.cli.outputs import add_out
from gatenorm_export.errors import ExitCode
from gatenorm_export.graphs import GRAPH_NAME
from gatenorm_export.locking import file_lock, folder_lock
from gatenorm_export.progress import Progress
from gatenorm_export.records import EngineArtifact

if TYPE_CHECKING:
    from gatenorm_export.executing import Batch, Outcome


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Build TensorRT engines of decoders, with a prefill and a decode profile; TensorRT-RTX needs no GPU for it. "
        "Operators that TensorRT does not take are lowered first. The same build is taken from a cache.",
        examples=(
            ("in half precision", "gatenorm build pruned/model.onnx --precision fp16 -o engines/pruned.engine"),
            ("of two graphs, named after their folders", "gatenorm build base/ pruned/ -o engines/"),
            (
                "on the GPUs of a Ray cluster",
                "gatenorm build base/ drop4/ drop8/ -o engines/ --executor ray://cluster:10001 "
                "--ray-resources gpus=1,accelerator=H100",
            ),
        ),
    )
    parser.add_argument(
        "graphs", type=Path, nargs="+", metavar="GRAPH", help="a .onnx file, or a folder that holds model.onnx"
    )
    add_out(
        parser,
        "a folder or a file name; of several graphs a folder, each engine named after its graph or its folder",
        required=True,
        locks=_locks,
    )
    add_flavour(parser, choices=("tensorrt", "tensorrt-rtx"))
    add_profiles(parser)
    add_build(parser)
    add_executor(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build and say what came out."""
    terminal = Terminal.of(args)
    check_executor_options(args)
    places = _places(args)
    if len(places) == 1 and args.executor == "local":
        ((graph, engine),) = places.values()
        _show(terminal, engine, _build(args, graph, engine, terminal.progress))
        return int(ExitCode.OK)
    out = next(iter(places.values()))[1].parent
    batch, records = _build_tasks(args, places, out, terminal.progress)
    if len(places) == 1:
        batch.raise_failures()
        _show(terminal, next(iter(places.values()))[1], next(iter(records.values())))
        return int(ExitCode.OK)
    report = batch.report("build", args.command)
    report.save(out / BATCH_NAME)
    rows = {name: _cells(record) for name, record in records.items()}
    table = batch_table(report, f"Engines in {out}", ("engine of", "precision", "MB", "layers", "for"), rows)
    engines = {name: record.to_object() for name, record in records.items()}
    terminal.result(report.to_object() | {"engines": engines}, table)
    batch.raise_failures()
    return int(ExitCode.OK)


def _locks(args: argparse.Namespace) -> tuple[Path, ...]:
    """Engines may be built side by side into one folder; several at once take it whole."""
    if len(args.graphs) > 1:
        return (folder_lock(args.out),)
    return (file_lock(_only_engine(args)),)


def _only_engine(args: argparse.Namespace) -> Path:
    """Where the engine of a single graph goes: the file that is named, or into the folder by the graph's name."""
    graph: Path = args.graphs[0]
    out: Path = args.out
    stem = Path(GRAPH_NAME if graph.is_dir() else graph.name).stem
    return out / f"{stem}.engine" if out.is_dir() or not out.suffix else out


def _places(args: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """Each graph and where its engine goes, by a name.

    Raises:
        InputError: there is no such graph; two engines would have one name.
        OutputError: a place is taken by something else.
    """
    from gatenorm_export.building import check_place
    from gatenorm_export.graphs import graph_file

    if len(args.graphs) == 1:
        graph = graph_file(args.graphs[0])
        engine = _only_engine(args)
        places = {engine.stem: (graph, engine)}
    else:
        out = batch_folder(args.out, verb="build")
        found = names_of(args.graphs)
        places = {name: (graph_file(path), out / f"{name}.engine") for name, path in found.items()}
    for _, engine in places.values():
        check_place(engine)
    return places


def _build(args: argparse.Namespace, graph: Path, engine: Path, progress: Progress) -> EngineArtifact:
    from gatenorm_export.building import build_engine, find_flavour

    return build_engine(
        graph,
        engine,
        flavour=find_flavour(args.flavour),
        shapes=shape_request(args),
        options=build_options(args),
        progress=progress,
    )


def _build_tasks(
    args: argparse.Namespace, places: dict[str, tuple[Path, Path]], out: Path, progress: Progress
) -> tuple[Batch, dict[str, EngineArtifact]]:
    """Have every engine built where ``--executor`` says."""
    from gatenorm_export.building import find_flavour
    from gatenorm_export.building.opening import record_file
    from gatenorm_export.executing import build_task, place_engine, run_batch

    if args.executor == "local":
        # One word about what is not installed, before anything is digested.
        find_flavour(args.flavour)
    shapes, options = shape_request(args), build_options(args)
    records: dict[str, EngineArtifact] = {}
    with remembering(args, out, progress) as executor:
        tasks = [
            build_task(graph, flavour=args.flavour, shapes=shapes, options=options, name=name).on_machines(executor)
            for name, (graph, _) in places.items()
        ]

        def place(outcome: Outcome) -> tuple[Path, Path]:
            engine = places[outcome.task.name][1]
            records[outcome.task.name] = place_engine(executor, outcome, engine)
            return engine, record_file(engine)

        batch = run_batch(tasks, executor, place, out=out, progress=progress)
    return batch, {name: records[name] for name in places if name in records}


def _show(terminal: Terminal, engine: Path, record: EngineArtifact) -> None:
    terminal.result(record.to_object(), built_line(engine, record), *preparation_lines(record))


def _cells(record: EngineArtifact) -> tuple[str, ...]:
    made = f"{record.flavour} {record.flavour_version}"
    return made, record.precision, f"{record.bytes / 1e6:,.1f}", f"{record.n_network_layers:,}", record.built_on
