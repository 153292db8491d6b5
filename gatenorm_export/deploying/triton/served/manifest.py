"""The part of a bundle's manifest that generation needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cache:
    """One cache tensor: ``present`` comes out of a step and goes into the next as ``past``.

    ``shape`` is that of ``past``; only the lengths that are not the batch's or the past's are known.
    """

    past: str
    present: str
    dtype: str
    shape: tuple[int | None, ...]
    batch_axis: int
    length_axis: int

    def shape_of(self, batch: int, length: int) -> list[int]:
        """The shape of the cache of ``batch`` rows that hold ``length`` tokens."""
        known = [1 if size is None else size for size in self.shape]
        known[self.batch_axis], known[self.length_axis] = batch, length
        return known


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the decoder is called; names of inputs that it does not have are None."""

    tokens: str
    mask: str | None
    positions: str | None
    logits: str
    caches: tuple[Cache, ...]
    vocabulary: int
    stops: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle's folder, as far as it is served."""

    folder: Path
    decoding: Decoding
    graph: Path | None
    tokenizer: Path | None
    manifest: Mapping[str, Any]

    def engine(self, name: str) -> tuple[Path, Mapping[str, Any]]:
        """The path of an engine and its entry in the manifest.

        Raises:
            LookupError: the bundle has no such engine.
        """
        for entry in self.manifest["engines"]:
            if entry["file"] == name:
                return self.folder / name, entry
        raise LookupError(f"{self.folder}: the manifest names no engine {name}")


def read_bundle(folder: Path) -> Bundle:
    """Read the manifest of a bundle that is served from ``folder``.

    Raises:
        OSError: there is no manifest.
        LookupError: it does not describe a decoder.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if not manifest.get("decoding"):
        raise LookupError(f"{folder}: the bundle's manifest does not describe a decoder")
    tokenizer = folder / "tokenizer.json"
    return Bundle(
        folder=folder,
        decoding=_decoding(manifest["decoding"]),
        graph=folder / manifest["graph"]["file"] if manifest["graph"] else None,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        manifest=manifest,
    )


def _decoding(entry: Mapping[str, Any]) -> Decoding:
    return Decoding(
        tokens=entry["token_input"],
        mask=entry["mask_input"],
        positions=entry["position_input"],
        logits=entry["logits_output"],
        caches=tuple(_cache(cache) for cache in entry["caches"]),
        vocabulary=entry["vocab_size"],
        stops=frozenset(entry["eos_token_ids"]),
    )


def _cache(entry: Mapping[str, Any]) -> Cache:
    return Cache(
        past=entry["past"],
        present=entry["present"],
        dtype=entry["dtype"],
        shape=tuple(size if isinstance(size, int) else None for size in entry["shape"]),
        batch_axis=entry["batch_axis"],
        length_axis=entry["length_axis"],
    )
