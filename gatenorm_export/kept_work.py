"""What an interrupted command has found so far: kept beside its output, so that the same command goes on there."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from gatenorm_export.artifacts import output_error, sha256_of_text, write_text
from gatenorm_export.records import tool_versions

Found = TypeVar("Found")


class KeptWork:
    """Named JSON values in a file, for as long as what decides them stays the same.

    ``decides`` are JSON values: digests of the inputs, and every option that changes a value. The versions of the tools
    decide with them. ``path`` None keeps nothing. The file has a line for the key and one for each value, which is
    added as it comes: keeping a value costs the same however many there are.
    """

    def __init__(self, path: Path | None, *decides: Any) -> None:
        self._path = path
        self._key = sha256_of_text(json.dumps([*decides, tool_versions()], sort_keys=True))
        self._values: dict[str, Any] = {}
        self.seconds = 0.0
        """How long it had taken to make what was found, as far as that was kept."""
        self._whole = False
        """Whether the file is ours to its end, so that a line may be added to it."""
        if path is not None and path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        # Lost work costs time, nothing else: what cannot be read was not found.
        try:
            first, *lines = path.read_text(encoding="utf-8").split("\n")
            if json.loads(first)["key"] != self._key:
                return
            for number, line in enumerate(lines):
                if number == len(lines) - 1:
                    # Behind the last line break is nothing, or what a killed command had not written to its end.
                    self._whole = not line
                    return
                name, value = json.loads(line)
                self._values[str(name)] = value
        except (OSError, ValueError, KeyError, TypeError):
            return

    @property
    def key(self) -> str:
        """The digest of what decides the values, for files that are kept beside this one."""
        return self._key

    def __len__(self) -> int:
        return len(self._values)

    @property
    def names(self) -> tuple[str, ...]:
        """What was found or kept, in the order of its coming."""
        return tuple(self._values)

    def get(self, name: str) -> Any | None:
        """A value that was found before. It was read from a file: whoever takes it checks its shape."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value.

        Raises:
            OutputError: the file cannot be written.
        """
        self._values[name] = value
        if self._path is None:
            return
        if not self._whole:
            entries = [{"kind": "kept work", "key": self._key}, *map(list, self._values.items())]
            write_text(self._path, "".join(f"{json.dumps(entry)}\n" for entry in entries))
            self._whole = True
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps([name, value])}\n")
        except OSError as error:
            self._whole = False
            raise output_error(self._path, error) from error

    def find(self, name: str, kind: TypeAdapter[Found]) -> Found | None:
        """A value of a record's type ``kind`` that :meth:`keep` or :meth:`once` kept."""
        with contextlib.suppress(TypeError, ValueError):
            seconds, kept = self._values.get(name)  # type: ignore[misc]
            found = kind.validate_json(json.dumps(kept))
            self.seconds += float(seconds)
            return found
        return None

    def keep(self, name: str, kind: TypeAdapter[Found], value: Found, *, seconds: float = 0.0) -> None:
        """Keep a value of a record's type ``kind``, for :meth:`find`; ``seconds`` is how long it took to make.

        Raises:
            OutputError: the file cannot be written.
        """
        # By way of the text: there NaN and infinity are strings, as in every record.
        self.put(name, [seconds, json.loads(kind.dump_json(value, by_alias=True))])

    def once(self, name: str, kind: TypeAdapter[Found], make: Callable[[], Found]) -> Found:
        """The value of a record's type ``kind`` that was kept, or else what ``make`` gives, which is then kept.

        Raises:
            OutputError: the file cannot be written.
        """
        found = self.find(name, kind)
        if found is not None:
            return found
        start = time.perf_counter()
        made = make()
        self.keep(name, kind, made, seconds=time.perf_counter() - start)
        return made

    def forget(self) -> None:
        """Remove the file: what it served is finished."""
        forget(self._path)
        self._whole = False


def kept_beside(out: Path | None, verb: str) -> Path | None:
    """Where a verb keeps its work: in the folder that it writes, or beside its .json; nowhere without an output."""
    if out is None:
        return None
    return out.with_name(f".{out.name}.{verb}-so-far") if out.suffix == ".json" else out / f".{verb}-so-far"


def forget(path: Path | None) -> None:
    """Remove the work that was kept at ``path``: the output that it served is written."""
    if path is not None:
        path.unlink(missing_ok=True)
