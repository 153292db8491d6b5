"""From what a user calls a model to a checked :class:`ModelSpec`: a folder, a file, a URL, a hub id, the demo model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from gatenorm_export.architectures import GGUF_ARCHITECTURES, NamePatterns
from gatenorm_export.architectures.guessing import UNKNOWN
from gatenorm_export.architectures.naming import holds_query_or_key
from gatenorm_export.checkpoints.locate import CONFIG, Located, locate
from gatenorm_export.checkpoints.opening import open_checkpoint
from gatenorm_export.demo_models import DEMO_MODELS, demo_model
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import TOKENIZER_FILES
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import FileDigest, ModelSpec
from gatenorm_export.scoring.weights import describe_towers
from gatenorm_export.small_files import check_small
from gatenorm_export.urls import shown

_BESIDE = (*TOKENIZER_FILES, "generation_config.json", "preprocessor_config.json")
"""What else defines a model, where it lies in its folder."""


def resolve_model(
    name: str, *, whole: bool = True, patterns: NamePatterns | None = None, progress: Progress | None = None
) -> ModelSpec:
    """Find a checkpoint, and read its dimensions and where its query and key weights are.

    ``name`` is a model folder (config.json with safetensors or pickled weights), a file of weights, a ``.gguf`` or
    ``.onnx`` file, a URL of any of them, a hub id, or a demo model. With ``whole`` the checkpoint must be one that can
    be loaded and exported, and every file of it is digested; without, nothing but headers is read, for scoring asks for
    single tensors. ``patterns`` name the query and key weights of a family that is not known.

    Raises:
        InputError: there is no such model, or it is damaged or incomplete.
        RefusedError: it can be scored but not exported; or names and shapes do not tell which weights are meant.
        MissingPartError: reading it needs a package that is not installed.
    """
    progress = progress or Quiet()
    place = str(demo_model(name, progress)) if name in DEMO_MODELS else name
    located = locate(place, wanted=None if whole else holds_query_or_key, progress=progress)
    if located is None:
        raise InputError(
            f"{name}: no such folder or file; name a model folder, a .gguf, .safetensors or .onnx file, a URL, "
            f"a hub id, or {' or '.join(DEMO_MODELS)}"
        )
    path = _loadable(located) if whole else located.path
    spec = ModelSpec(
        name=shown(name),
        path=path,
        source=located.kind,
        architecture=_architecture(located, guess=not whole or patterns is not None),
        towers=(),
        files=(),
        whole=whole,
        query_pattern=patterns.query if patterns else None,
        key_pattern=patterns.key if patterns else None,
    )
    towers = describe_towers(spec, digests=whole)
    if whole:
        _check_headers(spec)
    return spec.model_copy(update={"towers": towers, "files": _digests(located, whole=whole, progress=progress)})


def _loadable(located: Located) -> str:
    """Where the framework loads the checkpoint from."""
    if located.kind == "onnx":
        raise RefusedError(f"{located.path}: is a graph already; score it, and prune it with `gatenorm prune`")
    if located.remote:
        raise RefusedError(f"{shown(located.path)}: is scored where it lies, but exported from disk; download it first")
    path = Path(located.path)
    if located.kind == "gguf" or path.is_dir():
        return str(path)
    if path.name not in {"model.safetensors", "pytorch_model.bin"}:
        raise RefusedError(f"{path}: is scored by itself, but exported from a folder with model.safetensors; name that")
    return str(path.parent)


def _architecture(located: Located, *, guess: bool) -> str:
    if located.kind == "onnx":
        return "ONNX graph"
    if located.kind == "gguf":
        with open_checkpoint("gguf", located.path) as source:
            kind = str(source.fields.get("general.architecture"))
        return GGUF_ARCHITECTURES.get(kind, kind)
    architectures = located.config().get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return architectures[0]
    if guess and not architectures:
        return UNKNOWN
    raise InputError(f"{located.folder.where(CONFIG)}: names no architecture; is it the config of a pretrained model?")


def _digests(located: Located, *, whole: bool, progress: Progress) -> tuple[FileDigest, ...]:
    small = (*((CONFIG,) if located.has_config else ()), *((located.index,) if located.index else ()))
    if located.remote:
        return tuple(_small_digest(located, file) for file in small)
    files = list(small)
    if whole:
        beside = located.present(_BESIDE)
        for file in beside:
            check_small(Path(located.folder.where(file)))
        files += [*located.weights, *beside]
    elif located.kind == "onnx":
        # A plan made from a graph is for that graph; its own bytes are few, the weights may lie beside it.
        files += located.weights
    return _large_digests(located, files, progress)


def _check_headers(spec: ModelSpec) -> None:
    """Open every file of weights: one that does not hold what its header says is refused before all of it is read."""
    with open_checkpoint(spec.source, spec.path) as source:
        for name in source.tensors:
            _ = source.tensors[name]


def _small_digest(located: Located, file: str) -> FileDigest:
    reader = located.folder.open(file)
    try:
        content = reader.read(0, reader.size).tobytes()
    finally:
        reader.close()
    return FileDigest(name=file, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _large_digests(located: Located, files: Iterable[str], progress: Progress) -> tuple[FileDigest, ...]:
    paths = [Path(located.folder.where(file)) for file in files]
    digests = []
    with progress.task("digest the checkpoint", total=len(paths)) as bar:
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path}: not there, or a link to nothing; fetch it again")
            digests.append(FileDigest.of(path, folder=path.parent))
            bar.advance()
    return tuple(digests)
