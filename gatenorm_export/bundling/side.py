"""What lies beside a graph and belongs into its bundle: tokenizer, configs, genai's description, written or copied."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gatenorm_export.bundling.genai import genai_config
from gatenorm_export.errors import InputError
from gatenorm_export.genai_config import GENAI_CONFIG, other_files
from gatenorm_export.graphs import CONFIG_FILES, TOKENIZER_FILES
from gatenorm_export.model_configs import ModelConfigs, read_configs
from gatenorm_export.records import Decoding
from gatenorm_export.small_files import inside, present_inside


@dataclasses.dataclass(frozen=True)
class SideFiles:
    """Files by name, each from the first folder that has it, and what the configs tell that go into the bundle."""

    tokenizer: Mapping[str, Path]
    configs: Mapping[str, Path]
    genai: Path | None
    told: ModelConfigs


def find_side_files(folders: Sequence[Path], graph: str) -> SideFiles:
    """Look through ``folders`` in order; genai's description is the graph's own, so only the first one's counts.

    Raises:
        InputError: a config is no JSON object, a file is a link that leads out of its folder, or the description that
            is there would load a library into whoever loads the folder.
    """
    # A tokenizer's files belong together: those of two folders are never mixed.
    tokenizer = next((found for folder in folders if (found := present_inside(folder, TOKENIZER_FILES))), {})
    configs: dict[str, Path] = {}
    for folder in folders:
        configs = present_inside(folder, CONFIG_FILES) | configs
    genai = inside(folders[0], GENAI_CONFIG)
    own = genai if genai.is_file() else None
    read = {GENAI_CONFIG: own} if own is not None and _copied(own, graph).files else {}
    told = read_configs(configs | read)
    return SideFiles(tokenizer, configs, own, told)


@dataclasses.dataclass(frozen=True)
class GenaiFiles:
    """genai's description and the files that it names, or the ``reason`` why there is none."""

    files: Mapping[str, bytes | Path]
    reason: str


def genai_files(side: SideFiles, graph: str, decoding: Decoding | None, n_layers: int) -> GenaiFiles:
    """The description that lies beside the graph where it is one of this graph, else one that is written.

    Raises:
        InputError: the description that is there would load a library into whoever loads the folder.
    """
    if side.genai is not None:
        return _copied(side.genai, graph)
    if decoding is None:
        return GenaiFiles({}, "it is no decoder that can be stepped token by token")
    written = genai_config(graph, decoding, side.told, n_layers)
    if isinstance(written, str):
        return GenaiFiles({}, f"genai's plain decoder does not take this graph: {written}")
    return GenaiFiles({GENAI_CONFIG: (json.dumps(written, indent=4) + "\n").encode()}, "")


def check_genai_names(path: Path, known: Collection[str]) -> None:
    """Make sure that genai's description leads nowhere but to the files beside it.

    Raises:
        InputError: it names a file that is not ``known``, or a library.
    """
    config = dict(read_configs({GENAI_CONFIG: path}).genai)
    _check_library(path, config)
    unknown = [name for name in other_files(config, "") if name not in known]
    if unknown:
        raise InputError(f"{path}: names {unknown[0]}, which is no file of the bundle")


def _check_library(path: Path, config: Mapping[str, Any]) -> None:
    if "custom_ops_library" in json.dumps(config):
        raise InputError(f"{path}: names a custom_ops_library, whose code would run in whoever loads it; take it out")


def _copied(path: Path, graph: str) -> GenaiFiles:
    config = dict(read_configs({GENAI_CONFIG: path}).genai)
    _check_library(path, config)
    decoder = config.get("model", {}).get("decoder", {})
    if decoder.get("filename") != graph:
        return GenaiFiles({}, f"{GENAI_CONFIG} beside the graph describes {decoder.get('filename')}, not {graph}")
    files: dict[str, bytes | Path] = {GENAI_CONFIG: path}
    for name in other_files(config, graph):
        beside = path.parent / name
        if Path(name).name != name or not beside.is_file():
            return GenaiFiles({}, f"{GENAI_CONFIG} beside the graph names {name}, which is not there")
        files[name] = inside(path.parent, name)
    return GenaiFiles(files, "")
