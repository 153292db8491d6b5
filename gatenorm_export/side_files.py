"""What runtimes look for beside a graph: tokenizer, configs, preprocessors. It follows a graph into its new folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gatenorm_export.errors import InputError
from gatenorm_export.genai_config import GENAI_CONFIG, CacheNames, other_files, rewrite_genai_config
from gatenorm_export.graphs import CONFIG_FILES, GRAPH_NAME, TOKENIZER_FILES
from gatenorm_export.kinds import SPEECH_GRAPHS
from gatenorm_export.progress import Progress
from gatenorm_export.small_files import inside, read_object, read_small

# Anything else in a source folder is not ours to copy, least of all tensors. config.json stays as it is, its layer
# count too: optimum takes the cache from the graph's inputs, and the count tells what checkpoint the graph came from.
_COPIED = (*CONFIG_FILES, *TOKENIZER_FILES)


def side_files(graph: Path, pruned: Path, names: CacheNames, progress: Progress) -> dict[str, bytes]:
    """The files to write beside ``pruned``, by name: those beside ``graph``, genai's config made to fit.

    Beside the source itself nothing is written: the files there belong to the source.

    Raises:
        InputError: a file cannot be read, or genai's config does not describe the graph.
        RefusedError: genai cannot run the pruned graph as it is configured.
    """
    folder = graph.parent
    config_file = folder / GENAI_CONFIG
    if folder.resolve() == pruned.parent.resolve():
        if config_file.is_file():
            progress.say(f"{config_file}: still describes {graph.name}; for a genai folder name another output folder")
        return {}
    found = {name: _read(folder, name) for name in _COPIED if (folder / name).is_file()}
    if not config_file.is_file():
        return found
    try:
        config = rewrite_genai_config(_genai_config(config_file), graph.name, pruned.name, names)
    except RecursionError as error:
        raise InputError(f"{config_file}: is nested too deep; repair it, or name a .onnx file as output") from error
    if config is None:
        progress.say(f"{config_file}: not copied, it does not name {graph.name}")
        return found
    found[GENAI_CONFIG] = (json.dumps(config, indent=4) + "\n").encode()
    for name in other_files(config, pruned.name):
        if Path(name).name == name and name.endswith(".json") and (folder / name).is_file():
            found[name] = _read(folder, name)
        elif (folder / name).exists():
            progress.say(f"{config_file}: also names {name}, which was not copied; copy it beside the pruned graph")
    return found


def name_in_folder(graph: Path) -> str:
    """What a pruned graph is called in a folder of its own: a speech model's graphs keep the names clients know."""
    return graph.name if graph.name in SPEECH_GRAPHS.values() else GRAPH_NAME


def copy_companions(graph: Path, folder: Path, staging: Path) -> None:
    """Copy the other graph of a speech model, with its data, on its way to ``folder``: transcribing takes both."""
    others = set(SPEECH_GRAPHS.values()) - {graph.name}
    if graph.name not in SPEECH_GRAPHS.values() or graph.parent.resolve() == folder.resolve():
        return
    for path in sorted(graph.parent.iterdir()):
        # The data files of encoder_model.onnx are encoder_model.onnx_data or encoder_model.onnx.data.
        if path.is_file() and any(path.name.startswith(other) for other in others):
            shutil.copyfile(path, staging / path.name)


def _genai_config(path: Path) -> dict[str, object]:
    try:
        return read_object(inside(path.parent, path.name))
    except InputError as error:
        raise InputError(f"{error}; repair it, or name a .onnx file as output") from error


def _read(folder: Path, name: str) -> bytes:
    return read_small(inside(folder, name))
