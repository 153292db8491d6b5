"""What an interrupted command has found so far: kept beside its output, so that the same command goes on there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import sha256_of_text, write_text
from gatenorm_export.records import tool_versions


class KeptWork:
    """Named JSON values in a file, for as long as what decides them stays the same.

    ``decides`` are JSON values: digests of the inputs, and every option that changes a value. The versions of the tools
    decide with them. ``path`` None keeps nothing.
    """

    def __init__(self, path: Path | None, *decides: Any) -> None:
        self._path = path
        self._key = sha256_of_text(json.dumps([*decides, tool_versions()], sort_keys=True))
        self._values: dict[str, Any] = {}
        if path is not None and path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept.get("key") == self._key:
                    self._values = dict(kept["values"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                # Lost work costs time, nothing else.
                self._values = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str) -> Any | None:
        """A value that was found before. It was read from a file: whoever takes it checks its shape."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value.

        Raises:
            OutputError: the file cannot be written.
        """
        self._values[name] = value
        if self._path is not None:
            write_text(self._path, json.dumps({"kind": "kept work", "key": self._key, "values": self._values}))

    def forget(self) -> None:
        """Remove the file: what it served is finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def kept_beside(out: Path | None, verb: str) -> Path | None:
    """Where a verb keeps its work: in the folder that it writes, or beside its .json; nowhere without an output."""
    if out is None:
        return None
    return out.with_name(f".{out.name}.{verb}-so-far") if out.suffix == ".json" else out / f".{verb}-so-far"
