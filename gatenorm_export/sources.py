"""From what a user calls a model to a checked :class:`ModelSpec`: a folder, a GGUF file, a hub id, the demo model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatenorm_export.architectures import GGUF_ARCHITECTURES, NamePatterns, adapter_for
from gatenorm_export.demo_model import NAME as DEMO_NAME
from gatenorm_export.demo_model import demo_model
from gatenorm_export.errors import InputError, needs
from gatenorm_export.graphs import TOKENIZER_FILES
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import FileDigest, ModelSpec, TowerSpec

_CONFIG, _SINGLE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DESCRIBES = (*TOKENIZER_FILES, "generation_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(
    name: str, *, whole: bool = True, patterns: NamePatterns | None = None, progress: Progress | None = None
) -> ModelSpec:
    """Find a checkpoint and read its dimensions.

    ``name`` is a Hugging Face folder (config.json and safetensors), a ``.gguf`` file, a hub id, or ``smollm2``.
    With ``whole`` every file that defines the checkpoint is digested, without only what is small: scoring reads single
    tensors, and of a remote checkpoint nothing else is ever fetched.

    Raises:
        InputError: there is no such model, it is damaged or incomplete, or its architecture is not supported.
        MissingPartError: a hub id was given and huggingface_hub is not installed.
    """
    from gatenorm_export.scoring.weights import with_digests

    spec = _resolve(name, progress=progress)
    return with_digests(spec) if whole else spec


def _resolve(name: str, *, progress: Progress | None = None) -> ModelSpec:
    progress = progress or Quiet()
    if name == DEMO_NAME:
        return _from_gguf(demo_model(progress), name, progress)
    path = Path(name)
    if path.is_dir():
        return _from_folder(path.resolve(), name, progress)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{name}: is neither a folder nor a .gguf file; name the folder that holds it")
        return _from_gguf(path.resolve(), name, progress)
    if _HUB_ID.fullmatch(name) and path.suffix not in {".gguf", ".onnx", ".safetensors", ".bin"}:
        return _from_folder(_fetch(name, progress), name, progress)
    raise InputError(f"{name}: no such folder or file; name a model folder, a .gguf file, a hub id, or {DEMO_NAME}")


def _fetch(name: str, progress: Progress) -> Path:
    with needs("export", f"{name}: a hub id"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    disable_progress_bars()
    try:
        with progress.task(f"fetch {name} from the hub"):
            folder = snapshot_download(name, allow_patterns=[_CONFIG, _INDEX, "*.safetensors", *_DESCRIBES])
    except Exception as error:
        # The hub's client has no common base for "offline", "no such model" and "not yours".
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: no such folder, and the hub does not give it ({first})") from error
    return Path(folder)


def _from_folder(folder: Path, name: str, progress: Progress) -> ModelSpec:
    config = _read_json(folder / _CONFIG, "a Hugging Face model folder has a config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise InputError(f"{folder / _CONFIG}: names no architecture; is it the config of a pretrained model?")
    adapter_for(architectures[0])
    weights = _weight_files(folder)
    n_heads = _positive(config, "num_attention_heads", folder)
    d_model = _positive(config, "hidden_size", folder)
    described = [folder / _CONFIG, *weights, *(folder / side for side in _DESCRIBES if (folder / side).is_file())]
    if (folder / _INDEX).is_file():
        described.append(folder / _INDEX)
    return ModelSpec(
        name=name,
        path=str(folder),
        source="safetensors",
        architecture=architectures[0],
        towers=(
            TowerSpec(
                n_layers=_positive(config, "num_hidden_layers", folder),
                d_model=d_model,
                n_heads=n_heads,
                n_kv_heads=_positive(config, "num_key_value_heads", folder, default=n_heads),
                head_dim=_positive(config, "head_dim", folder, default=d_model // n_heads),
            ),
        ),
        files=_digests(described, folder, progress),
    )


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        weight_map = _read_json(folder / _INDEX, "").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / _INDEX}: has no weight_map")
        shards = []
        for shard in sorted({str(file) for file in weight_map.values()}):
            if Path(shard).name != shard:
                raise InputError(f"{folder / _INDEX}: names {shard}, which is not a file of this folder; refused")
            if not (folder / shard).is_file():
                raise InputError(f"{folder / shard}: the index names this shard, but it is not there; fetch it again")
            shards.append(folder / shard)
        return shards
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise InputError(f"{folder}: holds only pickled weights; convert them to safetensors first")
    raise InputError(f"{folder}: holds no weights; it needs {_SINGLE} or {_INDEX} with its shards")


def _from_gguf(path: Path, name: str, progress: Progress) -> ModelSpec:
    from gguf import GGUFReader

    try:
        fields: dict[str, Any] = {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    except Exception as error:
        # The reader trusts lengths in the file; a damaged one surfaces as any of half a dozen types.
        raise InputError(f"{path}: not readable GGUF ({type(error).__name__}: {error}); fetch it again") from error
    kind = str(fields.get("general.architecture"))
    architecture = GGUF_ARCHITECTURES.get(kind)
    if architecture is None:
        raise InputError(
            f"{path}: GGUF architecture {kind} is not supported; supported: {', '.join(GGUF_ARCHITECTURES)}"
        )
    n_heads = _positive(fields, f"{kind}.attention.head_count", path)
    d_model = _positive(fields, f"{kind}.embedding_length", path)
    return ModelSpec(
        name=name,
        path=str(path),
        source="gguf",
        architecture=architecture,
        towers=(
            TowerSpec(
                n_layers=_positive(fields, f"{kind}.block_count", path),
                d_model=d_model,
                n_heads=n_heads,
                n_kv_heads=_positive(fields, f"{kind}.attention.head_count_kv", path, default=n_heads),
                head_dim=_positive(fields, f"{kind}.attention.key_length", path, default=d_model // n_heads),
            ),
        ),
        files=_digests([path], path.parent, progress),
    )


def _digests(paths: list[Path], folder: Path, progress: Progress) -> tuple[FileDigest, ...]:
    digests = []
    with progress.task("digest the checkpoint", total=len(paths)) as bar:
        for path in paths:
            digests.append(FileDigest.of(path, folder=folder))
            bar.advance()
    return tuple(digests)


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: not there; {hint}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def _positive(source: Mapping[str, Any], key: str, where: Path, default: int | None = None) -> int:
    value = source.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value <= 0:
        raise InputError(f"{where}: {key} is {value!r}, where a positive number is needed")
    return value
