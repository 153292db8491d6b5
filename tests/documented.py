"""What the README and the pages of the documentation tell a reader to type, in the order in which they are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def pages() -> list[Path]:
    """The README, then the pages that are written by hand, as the site's navigation has them."""
    listed = (DOCS / name for name in _leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    return [ROOT / "README.md", *(page for page in listed if page.is_file())]


def fences(page: Path, language: str) -> list[str]:
    """The code blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(language: str = "console") -> list[tuple[str, str]]:
    """Each command of the blocks of a language, with the name of the page that has it first; a line that ends in a
    backslash goes on in the next."""
    first: dict[str, str] = {}
    for page in pages():
        for block in fences(page, language):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    first.setdefault(" ".join(line.split()), page.name)
    return [(page, command) for command, page in first.items()]


def _leaves(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for inner in entry.values():
            yield from _leaves(inner)
    elif isinstance(entry, list):
        for inner in entry:
            yield from _leaves(inner)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder, offline."""
    # The commands of this very environment come first, as in a shell in which it is active.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
