"""What a fuzz run feeds in: valid seeds, and inputs that were made from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

IN, OUT, OUTSIDE = "in", "out", "outside"
"""Folders of one case: what is read, where results may go, and what nobody may open."""
SECRETS = ("secret.json", "secret.safetensors", "secret.bin", "secret.onnx", "secret.gguf")
"""Files outside that hostile names point to."""


@dataclass(frozen=True)
class Seed:
    """A valid folder of one kind of input.

    ``kinds`` says how each file is mutated; files without a kind are left as they are. ``targets`` are the names of
    what is run on it, see ``targets.py``. ``named`` are files that the targets name themselves: a link in their place
    is the user's own.
    """

    name: str
    files: Mapping[str, bytes]
    kinds: Mapping[str, str]
    targets: tuple[str, ...]
    named: tuple[str, ...] = ()


@dataclass(frozen=True)
class Special:
    """What stands in the place of a plain file. ``target`` is a link's, relative to the folder of the input."""

    kind: Literal["symlink", "hardlink", "fifo", "folder", "sparse"]
    target: str = ""
    size: int = 0


@dataclass
class Input:
    """A seed's files after some edits, the edits in words, and the target that is run on them."""

    seed: str
    target: str
    files: dict[str, bytes]
    specials: dict[str, Special] = field(default_factory=dict)
    edits: list[str] = field(default_factory=list)

    def write(self, root: Path) -> None:
        """Lay the input out below ``root/in``; ``root/outside`` must be there for links to lead to."""
        for name, content in self.files.items():
            path = root / IN / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name not in self.specials:
                path.write_bytes(content)
        for name, special in self.specials.items():
            _make(root / IN / name, special)


def _make(path: Path, special: Special) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if special.kind == "symlink":
        path.symlink_to(special.target)
    elif special.kind == "hardlink":
        os.link(path.parent / special.target, path)
    elif special.kind == "fifo":
        os.mkfifo(path)
    elif special.kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(special.size)
