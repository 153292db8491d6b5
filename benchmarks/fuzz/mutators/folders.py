"""The folder itself: files missing, twice, empty, of absurd size, or links and special files in their place."""

from __future__ import annotations

import random
from typing import Literal

from benchmarks.fuzz.inputs import Input, Special

_SPARSE_BYTES = 40 << 30


def mutate_folder(rng: random.Random, made: Input, named: tuple[str, ...]) -> str:
    """Change what stands under one name."""
    name = rng.choice(list(made.files))
    up = "../" * (1 + name.count("/"))
    choices = ["missing", "link to a file", *_SPECIALS]
    if name not in named:
        choices += ["link out", "link out", "absolute"]
    if name.endswith(".data"):
        # Of other files a hard link cannot be told from a copy; ONNX forbids them for outside data.
        choices += ["hard link out"]
    which = rng.choice(choices)
    if which == "missing":
        del made.files[name]
    elif which in {"link out", "hard link out"}:
        kind: Literal["symlink", "hardlink"] = "symlink" if which == "link out" else "hardlink"
        made.specials[name] = Special(kind, f"{up}outside/{_secret(name)}")
    elif which == "absolute":
        made.specials[name] = Special("symlink", rng.choice(("/etc/hostname", "/dev/zero", "/proc/self/environ", "/")))
    elif which == "link to a file":
        made.specials[name] = Special("symlink", rng.choice(list(made.files)))
    elif which == "huge" and name.endswith(".data"):
        # More data than the graph asks for is no lie, and is mapped.
        made.specials[name] = Special("sparse", size=1 << 26)
    else:
        made.specials[name] = _SPECIALS[which]
    return f"{name}: {which}"


_SPECIALS = {
    "itself": Special("symlink", "itself"),
    "nothing": Special("symlink", "not-there"),
    "pipe": Special("fifo"),
    "folder": Special("folder"),
    "huge": Special("sparse", size=_SPARSE_BYTES),
}


def _secret(name: str) -> str:
    suffix = name.rpartition(".")[2]
    return f"secret.{suffix if suffix in {'json', 'safetensors', 'onnx', 'gguf'} else 'bin'}"
