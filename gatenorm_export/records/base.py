"""What all records share: frozen values, JSON in and out, a schema version, the versions of the tools."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gatenorm_export.artifacts import write_text
from gatenorm_export.errors import InputError
from gatenorm_export.small_files import read_small

SCHEMA_VERSION = 1

TOOLS = (
    "gatenorm",
    "numpy",
    "onednn-cpu-gomp",
    "torch",
    "transformers",
    "peft",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "optimum",
    "optimum-onnx",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
)


def tool_versions() -> dict[str, str]:
    """Versions of the installed packages that can influence a result. Absent ones are left out; nothing is imported."""
    return dict(_installed())


@functools.cache
def _installed() -> dict[str, str]:
    """Looked up once: searching every package's metadata for each record takes longer than scoring a small model."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Part(BaseModel):
    """A frozen value inside a record."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="strings")


class Convention(Part):
    """How a score was computed where the paper leaves a choice; see docs/scoring.md."""

    variant: Literal["all-heads", "per-head"] = "all-heads"
    formula: str = "||Wq Wk^T||_F over all heads together (arXiv 2512.20636)"
    grouped_query: str = "key heads repeated to the query heads"
    biases: str = "left out"
    norm_weights: str = "not folded in"
    exactness: Literal["exact", "sketched"] = "exact"
    bound: str | None = None
    """What the intervals of sketched scores stand on."""
    arithmetic: str = "float64"
    layout: str | None = None
    """How the checkpoint keeps its query and key weights."""
    guessed: str | None = None
    """Which tensors were taken by their names and shapes, of a family that is not known."""
    checkpoint_dtype: str | None = None
    source_digest: str | None = None
    """xxh3-128 over the query and key weights as they are stored."""


class Record(Part):
    """A frozen value that has a file of its own. ``convention`` is that of the scores it descends from."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: str
    versions: dict[str, str] = Field(default_factory=tool_versions)
    convention: Convention = Field(default_factory=Convention)

    def to_json(self) -> str:
        """The record as indented JSON, ending in a newline; key order is the declaration order."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"

    def to_object(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        # By way of the text: there NaN and infinity are strings, which every JSON parser takes.
        found: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return found

    def save(self, path: Path) -> None:
        """Write the record atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record of this class.

        Raises:
            InputError: no such file, no JSON, another kind of record, or another schema version.
        """
        text = read_small(path)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            newer = _newer_schema(text)
            if newer is not None:
                raise InputError(
                    f"{path}: is of schema {newer}, and this gatenorm reads {SCHEMA_VERSION}: a newer one wrote it; "
                    "pip install --upgrade gatenorm"
                ) from error
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise InputError(
                f"{path}: not a {cls.__name__} record of schema {SCHEMA_VERSION}: {where}: {first['msg']}"
            ) from error


def _newer_schema(text: str | bytes) -> int | None:
    """The schema version of a record that a later gatenorm wrote; None of any other text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    version = found.get("schema") if isinstance(found, dict) else None
    return version if type(version) is int and SCHEMA_VERSION < version < 10**6 else None
