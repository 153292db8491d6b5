"""The licence of the source model, where the model says it itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gatenorm_export.checkpoints.gguf_file import read_gguf_fields
from gatenorm_export.checkpoints.ranges import LocalFolder
from gatenorm_export.errors import GateNormError
from gatenorm_export.records import ModelSpec
from gatenorm_export.small_files import inside

README = "README.md"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING", "NOTICE", "NOTICE.txt")
"""Texts that travel with a model."""

_LONGEST_README = 1024 * 1024


def licence_of(spec: ModelSpec | None, folders: Iterable[Path]) -> tuple[str, str] | None:
    """The licence's name and where it was read: a GGUF file's metadata, or a model card's front matter; else None.

    ``folders`` may hold a model card, the checkpoint's own among them.
    """
    places = list(folders)
    if spec is not None:
        path = Path(spec.path)
        found = _of_gguf(path) if spec.source == "gguf" and path.is_absolute() else None
        if found is not None:
            return found, "general.license of the GGUF file"
    for place in places:
        found = _of_card(inside(place, README))
        if found is not None:
            return found, f"license in {README} of the model"
    for place in places:
        text = next((name for name in LICENCE_FILES if (place / name).is_file()), None)
        if text is not None:
            return f"see {text}", f"the file {text} of the model"
    return None


def licence_texts(folders: Iterable[Path]) -> dict[str, Path]:
    """The texts of the licence that lie beside the model, by name."""
    found: dict[str, Path] = {}
    for place in folders:
        for name in LICENCE_FILES:
            if (place / name).is_file():
                found.setdefault(name, inside(place, name))
    return found


def _of_gguf(path: Path) -> str | None:
    try:
        fields = read_gguf_fields(LocalFolder(path.parent), path.name)
    except GateNormError:
        # The checkpoint may have gone since; the graph does not need it any more.
        return None
    for key in ("general.license", "general.license.name"):
        value = fields.get(key)
        if isinstance(value, str) and value.strip():
            return _line(value)
    return None


def _of_card(path: Path) -> str | None:
    """``license`` in the YAML front matter of a model card; for "other" the name that stands beside it."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_LONGEST_README)
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return None
    values = dict(re.findall(r"^(license|license_name)[ \t]*:[ \t]*(\S.*?)[ \t]*\r?$", match[1], re.MULTILINE))
    named = {key: _line(value.strip("\"'")) for key, value in values.items()}
    licence = named.get("license")
    return named.get("license_name", licence) if licence == "other" else licence


def _line(value: str) -> str:
    return " ".join(value.split())[:200]
