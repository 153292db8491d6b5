"""Models as inputs of tasks: every file that belongs to one, at the place where the others look for it."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.errors import needs
from gatenorm_export.executing.tasks import InputFile, input_file
from gatenorm_export.graphs import external_tensors, manifest_file
from gatenorm_export.model_configs import CONFIG_NAMES


def graph_inputs(graph: Path, folder: str) -> tuple[InputFile, ...]:
    """A graph, its data files, its manifest and the model's configs, under ``folder`` of the task's inputs.

    The graph comes first.

    Raises:
        MissingPartError: onnx-ir is not installed.
        InputError: a file cannot be read.
    """
    with needs("onnx", "reading ONNX"):
        import onnx_ir as ir
    # Read as it is written: where a hub's cache links its files, load_graph puts the links' targets in their place.
    names = sorted({str(tensor.location) for tensor, _ in external_tensors(ir.load(graph))})
    files = [input_file(graph, f"{folder}/{graph.name}")]
    files += [input_file(graph.parent / name, f"{folder}/{Path(name).as_posix()}") for name in names]
    manifest = manifest_file(graph)
    if manifest.is_file():
        files.append(input_file(manifest, f"{folder}/{manifest.name}"))
    # How long a context may be stands there.
    configs = [graph.parent / name for name in CONFIG_NAMES]
    files += [input_file(config, f"{folder}/{config.name}") for config in configs if config.is_file()]
    return tuple(files)


def engine_inputs(engine: Path, folder: str) -> tuple[InputFile, ...]:
    """An engine and its record, the engine first.

    Raises:
        InputError: one of them is missing, or the engine is not the one of its record.
    """
    from gatenorm_export.building.opening import read_engine, record_file

    read_engine(engine)
    return tuple(input_file(path, f"{folder}/{path.name}") for path in (engine, record_file(engine)))


def checkpoint_inputs(checkpoint: str, folder: str) -> tuple[InputFile, ...]:
    """Every file of a checkpoint that can be loaded, all at one rank under ``folder``.

    Raises:
        InputError: there is no such checkpoint, or it is damaged.
        RefusedError: it is none that the framework loads from disk.
    """
    from gatenorm_export.sources import resolve_model

    spec = resolve_model(checkpoint)
    place = Path(spec.path)
    place = place if place.is_dir() else place.parent
    return tuple(InputFile(f"{folder}/{file.name}", place / file.name, file.sha256, file.bytes) for file in spec.files)
