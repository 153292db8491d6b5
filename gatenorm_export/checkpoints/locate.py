"""From what a user calls a model to where its weights lie and what kind they are. Only small files are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from gatenorm_export.checkpoints import safetensors_file, torch_file
from gatenorm_export.checkpoints.gguf_file import gguf_parts
from gatenorm_export.checkpoints.hub import fetch_for_scoring
from gatenorm_export.checkpoints.opening import FILE_SUFFIXES, folder_of
from gatenorm_export.checkpoints.ranges import Folder, read_json
from gatenorm_export.checkpoints.safetensors_file import read_weight_map
from gatenorm_export.errors import InputError
from gatenorm_export.graphs import GRAPH_NAME
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.urls import SCHEMES, is_remote, shown

CONFIG = "config.json"
Kind = Literal["safetensors", "gguf", "torch", "onnx"]

_BY_RANGE = "only safetensors and GGUF are read by range; download it first"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_KINDS: dict[str, Kind] = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".bin": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".onnx": "onnx",
}


@dataclasses.dataclass(frozen=True)
class Located:
    """A checkpoint that was found.

    ``path`` is an absolute path or a URL: of the folder, or of the file where the user named one. ``weights`` are the
    names of the weight files in ``folder``, and ``index`` that of the file which lists them, if there is one.
    """

    kind: Kind
    path: str
    folder: Folder
    weights: tuple[str, ...]
    index: str | None = None

    @property
    def remote(self) -> bool:
        """Whether it is read over a network."""
        return self.folder.remote

    @property
    def has_config(self) -> bool:
        """Whether a config.json lies beside the weights; GGUF and ONNX describe themselves."""
        return self.kind not in {"gguf", "onnx"} and self.folder.has(CONFIG)

    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            InputError: it is not there, or no JSON object.
        """
        return read_json(self.folder, CONFIG, hint="a Hugging Face model folder has a config.json")

    def present(self, files: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``files`` that lie beside the weights."""
        return tuple(file for file in files if self.folder.has(file))


def locate(
    name: str, *, wanted: Callable[[str], bool] | None = None, progress: Progress | None = None
) -> Located | None:
    """Find the checkpoint that a user means by a folder, a file, a URL of either, or a hub id; None if it is nothing.

    Of a hub id the small files and all weights are fetched or, with ``wanted``, only the files that hold a tensor whose
    name it is true of. Of a URL nothing but headers is.

    Raises:
        InputError: it is damaged or incomplete, a URL does not answer, or the hub does not give it.
        MissingPartError: reading from there needs a package that is not installed.
    """
    progress = progress or Quiet()
    if is_remote(name):
        with progress.task(f"ask for {shown(name)}"):
            return _located(name)
    if "://" in name:
        raise InputError(f"{name}: only URLs of {', '.join(SCHEMES)} are read")
    path = Path(name)
    if path.exists():
        if path.is_file() and path.suffix not in FILE_SUFFIXES:
            raise InputError(
                f"{name}: is neither a folder nor a {', '.join(sorted(FILE_SUFFIXES))} file; name the folder that "
                "holds it"
            )
        # The name of a link counts, not that of what it leads to: a hub's cache keeps its files as links to digests.
        return _located(str(path.absolute()) if path.is_file() else str(path.resolve()))
    if _HUB_ID.fullmatch(name) and path.suffix not in FILE_SUFFIXES:
        return _located(str(fetch_for_scoring(name, wanted, progress)), whole=wanted is None)
    return None


def _located(place: str, *, whole: bool = True) -> Located:
    """With ``whole``, every shard on disk that an index names must be there."""
    folder, file = folder_of(place)
    if file is None:
        return _in_folder(place, folder, whole=whole)
    kind = _KINDS[Path(file).suffix]
    if folder.remote and kind in {"torch", "onnx"}:
        raise InputError(f"{folder.where(file)}: {_BY_RANGE}")
    weights = gguf_parts(folder, file) if kind == "gguf" else (file,)
    if folder.remote:
        # Asked for now, a file that is not there is named before anything else.
        folder.open(file).close()
    return Located(kind, place, folder, weights)


def _in_folder(place: str, folder: Folder, *, whole: bool) -> Located:
    single, index = safetensors_file.SINGLE, safetensors_file.INDEX
    if folder.has(single):
        return Located("safetensors", place, folder, (single,))
    if folder.has(index):
        return Located("safetensors", place, folder, _shards(folder, index, whole=whole), index)
    if not folder.remote:
        if folder.has(torch_file.SINGLE):
            return Located("torch", place, folder, (torch_file.SINGLE,))
        if folder.has(torch_file.INDEX):
            return Located("torch", place, folder, _shards(folder, torch_file.INDEX, whole=whole), torch_file.INDEX)
        if folder.has(GRAPH_NAME):
            return Located("onnx", str(Path(place) / GRAPH_NAME), folder, (GRAPH_NAME,))
        others = sorted(path.name for path in Path(place).iterdir() if path.suffix in FILE_SUFFIXES)
        if len(others) == 1:
            return _located(str(Path(place) / others[0]))
        if others:
            raise InputError(f"{place}: holds {', '.join(others[:4])}; name the file that is meant")
    else:
        for file in (torch_file.SINGLE, torch_file.INDEX):
            if folder.has(file):
                raise InputError(f"{folder.where(file)}: {_BY_RANGE}")
        # A source that shows nothing at all is said to be wrong by its own answer.
        folder.open(CONFIG if not folder.has(CONFIG) else single)
    raise InputError(f"{folder.name}: holds no weights; it needs {single} or {index} with its shards")


def _shards(folder: Folder, index: str, *, whole: bool) -> tuple[str, ...]:
    shards = tuple(sorted(set(read_weight_map(folder, index).values())))
    for shard in shards:
        # A remote shard is asked for when one of its tensors is.
        if whole and not folder.remote and not folder.has(shard):
            raise InputError(f"{folder.where(shard)}: the index names this shard, but it is not there; fetch it again")
    return shards
