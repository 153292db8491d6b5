"""The models to evaluate: a folder with model.onnx, a .onnx file or an .engine, checked before anything long begins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import sha256_of_text
from gatenorm_export.comparing.deciding import graph_digest
from gatenorm_export.errors import InputError
from gatenorm_export.evaluating.decoder import Decoder, GraphDecoder
from gatenorm_export.framework import load_tokenizer
from gatenorm_export.graphs import GRAPH_NAME, graph_file, graph_manifest
from gatenorm_export.records import EngineArtifact, PrunedGraph

_ENGINE_SUFFIX = ".engine"
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_UNBOUNDED = 10**9
"""Tokenizers without a limit say 1e30."""

DEFAULT_MAX_LENGTH = 2048
"""lm-eval's own, for models that name no length."""


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A model that can be opened. ``sha256`` is over all its files, ``dropped`` None where nobody recorded it."""

    path: Path
    label: str
    sha256: str
    dropped: tuple[int, ...] | None
    tokenizer: Any
    max_length: int
    eos_token_ids: tuple[int, ...]
    engine: EngineArtifact | None

    def open(self) -> Decoder:
        """Load it.

        Raises:
            InputError: it cannot be loaded.
            RefusedError: it is no decoder over tokens.
        """
        if self.engine is None:
            return GraphDecoder(self.path)
        from gatenorm_export.evaluating.engine import EngineDecoder, load_engine

        return EngineDecoder(str(self.path), self.engine, load_engine(self.path, self.engine))


def find_model(path: Path, *, tokenizer: Path | None = None, max_length: int | None = None) -> EvaluatedModel:
    """Find a model by the name of its file or folder, check it, and load its tokenizer.

    The tokenizer is taken from ``tokenizer``, or from the model's own folder; ``max_length`` overrides what config.json
    there says, in the way lm-eval reads it.

    Raises:
        InputError: no such model, it is not the one that its manifest describes, or it has no tokenizer.
        RefusedError: an engine that this machine cannot run.
        MissingPartError: transformers, onnx-ir or the engine's TensorRT is not installed.
    """
    engine: EngineArtifact | None = None
    dropped: tuple[int, ...] | None = None
    if path.suffix == _ENGINE_SUFFIX:
        from gatenorm_export.evaluating.engine import check_engine

        engine = check_engine(path)
        digest = engine.sha256
    else:
        path = graph_file(path)
        manifest = graph_manifest(path)
        if manifest is not None:
            dropped = manifest.dropped if isinstance(manifest, PrunedGraph) else ()
        digest = graph_digest(path)
    folder = tokenizer or path.parent
    found = load_tokenizer(folder, None)
    if found is None:
        raise InputError(f"{folder}: holds no tokenizer; copy the model's there, or name its folder with --tokenizer")
    return EvaluatedModel(
        path=path,
        label=path.resolve().parent.name if path.name == GRAPH_NAME else path.name,
        sha256=digest,
        dropped=dropped,
        tokenizer=found,
        max_length=max_length or _max_length([path.parent, folder], found),
        eos_token_ids=_eos_token_ids([path.parent, folder]),
        engine=engine,
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what a tokenizer makes of texts and tokens, as far as it can be told without running it."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    content = fast.to_str() if fast is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return sha256_of_text(json.dumps([type(tokenizer).__name__, tokenizer.special_tokens_map, content], default=str))


def _max_length(folders: list[Path], tokenizer: Any) -> int:
    for folder in folders:
        if not (folder / "config.json").is_file():
            continue
        config = _config(folder)
        if config is not None:
            text = getattr(config, "text_config", None) or config
            lengths = [getattr(text, name, None) for name in _LENGTHS]
            known = [int(length) for length in lengths if length is not None]
            if known:
                return known[0]
    limit = int(tokenizer.model_max_length or _UNBOUNDED)
    return limit if limit < _UNBOUNDED else DEFAULT_MAX_LENGTH


def _config(folder: Path) -> Any | None:
    """The config as transformers reads it, defaults of the family included; None for a family that it does not know."""
    from transformers import AutoConfig

    from gatenorm_export.silence import silenced

    with silenced():
        try:
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError):
            return None


def _eos_token_ids(folders: list[Path]) -> tuple[int, ...]:
    """What ends a generation by generation_config.json or else config.json, as transformers reads them."""
    for name in ("generation_config.json", "config.json"):
        for folder in folders:
            if not (folder / name).is_file():
                continue
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            except (OSError, ValueError, AttributeError) as error:
                raise InputError(f"{folder / name}: cannot be read ({error}); copy it from the checkpoint") from error
            if found is not None:
                return tuple(int(token) for token in (found if isinstance(found, list) else [found]))
    return ()
