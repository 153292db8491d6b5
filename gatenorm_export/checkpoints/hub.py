"""Hub ids: fetch the small files and the weights, or only those shards that hold tensors which are wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from gatenorm_export.checkpoints import safetensors_file, torch_file
from gatenorm_export.checkpoints.ranges import LocalFolder
from gatenorm_export.checkpoints.safetensors_file import read_weight_map
from gatenorm_export.errors import InputError, needs
from gatenorm_export.graphs import TOKENIZER_FILES
from gatenorm_export.progress import Progress

_SMALL = ("config.json", "generation_config.json", safetensors_file.INDEX, torch_file.INDEX, *TOKENIZER_FILES)


def fetch_for_scoring(name: str, wanted: Callable[[str], bool] | None, progress: Progress) -> Path:
    """Fetch a model from the hub into its client's cache, and return its folder there.

    With ``wanted`` only those shards are fetched that hold a tensor whose name it is true of; without an index every
    model has one file, which is fetched. ``hf://NAME`` instead reads the tensors' bytes and nothing else. Safetensors
    are preferred to pickles.

    Raises:
        InputError: the hub does not answer, does not know it or does not show it.
        MissingPartError: huggingface_hub is not installed.
    """
    with needs("export", f"{name}: a hub id"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    disable_progress_bars()

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(snapshot_download(name, allow_patterns=patterns))
        except Exception as error:
            # The hub's client has no common base for "offline", "no such model" and "not yours".
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{name}: no such folder, and the hub does not give it ({first})") from error

    with progress.task(f"fetch {name} from the hub"):
        folder = fetch([*_SMALL, safetensors_file.SINGLE])
        if (folder / safetensors_file.SINGLE).is_file():
            return folder
        if (folder / safetensors_file.INDEX).is_file():
            return fetch(_holding(folder, safetensors_file.INDEX, wanted))
        if (folder / torch_file.INDEX).is_file():
            return fetch(_holding(folder, torch_file.INDEX, wanted))
        return fetch([torch_file.SINGLE])


def _holding(folder: Path, index: str, wanted: Callable[[str], bool] | None) -> list[str]:
    weight_map = read_weight_map(LocalFolder(folder), index)
    shards = {shard for name, shard in weight_map.items() if wanted is None or wanted(name)}
    # A name with a bracket would be a pattern; json's quoting is not a file name.
    strange = [shard for shard in shards if any(sign in shard for sign in "*?[]")]
    if strange:
        raise InputError(f"{folder / index}: names {json.dumps(strange[0])}, which is no plain file name; refused")
    return sorted(shards)
