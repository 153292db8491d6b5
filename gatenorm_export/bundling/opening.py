"""Open a bundle: its manifest, held against every file of the folder, before anybody reads one of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import InputError, TamperedError
from gatenorm_export.graphs import BUNDLED_RECORDS, MANIFEST_NAME
from gatenorm_export.model_configs import ModelConfigs, read_configs
from gatenorm_export.records import BundleEngine, BundleManifest, ExportedGraph, PrunedGraph
from gatenorm_export.records.bundle import UNSEALED
from gatenorm_export.small_files import read_small

LONGEST_MANIFEST = 64 * 1024 * 1024
"""Bytes. A model of a thousand layers stays below a hundredth of it."""

_ADVICE = "copy the bundle again, or bundle the run again"
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those of its manifest."""

    folder: Path
    manifest: BundleManifest

    def path(self, name: str) -> Path:
        """Where a file of the manifest lies.

        Raises:
            InputError: the manifest has no file of that name.
        """
        try:
            return self.folder / self.manifest.file(name).name
        except KeyError:
            raise InputError(f"{self.folder}: the bundle has no file {name}") from None

    def configs(self) -> ModelConfigs:
        """What its configs tell.

        Raises:
            InputError: one is no JSON object.
        """
        return read_configs({file.name: self.path(file.name) for file in self.manifest.files if file.role == "config"})

    def record(self) -> ExportedGraph | PrunedGraph | None:
        """The record of its graph, where export or prune wrote one.

        Raises:
            InputError: it is damaged.
        """
        names = {file.name for file in self.manifest.files}
        for kind in (PrunedGraph, ExportedGraph):
            name = f"{BUNDLED_RECORDS}/{kind.model_fields['kind'].default}.json"
            if name in names:
                return kind.load(self.path(name))
        return None

    @property
    def graph_path(self) -> Path | None:
        """The ONNX graph; None in a bundle of engines alone."""
        return self.path(self.manifest.graph.file) if self.manifest.graph is not None else None

    def engine_path(self, engine: BundleEngine) -> Path:
        """Where an engine lies."""
        return self.path(engine.file)


def open_bundle(folder: Path, *, digest: bool = True) -> Bundle:
    """Open a bundle after every check that needs no runtime: names, sizes, the manifest's seal, no file more or less.

    With ``digest`` every file's sha256 is checked as well, which reads all of them.

    Raises:
        InputError: the folder is no bundle.
        TamperedError: something was touched; the text names the first finding.
    """
    manifest = read_manifest(folder)
    touched = touched_files(folder, manifest, digest=digest)
    if touched:
        more = f", and {len(touched) - 1} more" if len(touched) > 1 else ""
        raise TamperedError(f"{folder}: {touched[0]}{more}; {_ADVICE}")
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> BundleManifest:
    """The manifest, held against its own seal before anything in it is believed.

    Raises:
        InputError: the folder is no bundle, or one of another schema version.
        TamperedError: the manifest is gone, or not what it was when it was sealed.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir() or not any(folder.iterdir()):
        raise InputError(f"{folder}: no such bundle; `gatenorm bundle` makes one")
    if not path.is_symlink() and not path.exists():
        if _was_bundle(folder):
            raise TamperedError(f"{folder}: holds no {MANIFEST_NAME} and other parts of a bundle; {_ADVICE}")
        raise InputError(f"{folder}: is no bundle, for it holds no {MANIFEST_NAME}; `gatenorm bundle` makes one")
    if path.is_symlink():
        raise TamperedError(f"{path}: is a link; {_ADVICE}")
    content = read_small(path, largest=LONGEST_MANIFEST)
    seal = _SEAL.search(content)
    if seal is None and b'"bundle"' not in content and content.strip():
        raise InputError(f"{path}: is no bundle's; `gatenorm bundle` makes one")
    if seal is None or seal_of(content, seal[1]) != seal[1].decode():
        raise TamperedError(f"{path}: was changed since it was sealed; {_ADVICE}")
    return BundleManifest.load(path)


def _was_bundle(folder: Path) -> bool:
    """Whether a folder without a manifest shows that it had one: nothing else keeps the record of a graph there."""
    return any((folder / BUNDLED_RECORDS / f"{kind}.json").is_file() for kind in ("pruned", "exported"))


def sealed(manifest: BundleManifest) -> tuple[BundleManifest, bytes]:
    """The manifest with its seal and the digest of what can be made again, and the bytes of its file."""
    manifest = manifest.model_copy(update={"reproducible_sha256": reproducible_digest(manifest)})
    open_text = manifest.model_copy(update={"seal": UNSEALED}).to_json()
    seal = hashlib.sha256(open_text.encode()).hexdigest()
    done = manifest.model_copy(update={"seal": seal})
    return done, done.to_json().encode()


def reproducible_digest(manifest: BundleManifest, *, as_read: bool = False) -> str:
    """The sha256 of the manifest without engines, and without what the same inputs may give other bytes of.

    ``as_read`` leaves out fields that the file of the manifest does not have: those of later versions.
    """
    same = tuple(file for file in manifest.files if not file.not_reproducible)
    changes = {"seal": UNSEALED, "reproducible_sha256": None, "engines": (), "files": same}
    changed = manifest.model_copy(update=changes)
    text = changed.model_dump_json(indent=2, by_alias=True, exclude_unset=True) + "\n" if as_read else changed.to_json()
    return hashlib.sha256(text.encode()).hexdigest()


def seal_of(content: bytes, seal: bytes) -> str:
    """What the seal of a manifest's bytes should be, ``seal`` being the one that stands there."""
    field = b'"seal": "%s"'
    opened = content.replace(field % seal, field % UNSEALED.encode(), 1)
    return hashlib.sha256(opened).hexdigest()


def touched_files(folder: Path, manifest: BundleManifest, *, digest: bool = True) -> tuple[str, ...]:
    """What is not as the manifest says, a phrase for each file: missing, changed, added, or no plain file."""
    expected = {file.name: file for file in manifest.files}
    findings, met = [], set()
    for name, entry in _entries(folder):
        if name == MANIFEST_NAME:
            continue
        met.add(name)
        file = expected.get(name)
        if file is None:
            findings.append(f"{name} was added")
        elif entry.is_symlink() or not entry.is_file(follow_symlinks=False):
            findings.append(f"{name} is a link or no plain file")
        elif entry.stat(follow_symlinks=False).st_size != file.bytes or (
            digest and sha256_of(folder / name) != file.sha256
        ):
            findings.append(f"{name} was changed")
    findings.extend(f"{name} is missing" for name in expected if name not in met)
    # A name on disk need not be text.
    return tuple(os.fsencode(finding).decode("utf-8", "backslashreplace") for finding in sorted(findings))


def _entries(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder that is no folder itself, by its name from there; links are not followed.

    An empty folder counts too: a bundle has none.
    """
    # A list and no recursion: somebody may have put folders into each other as deep as a path can be.
    waiting: list[tuple[str, os.DirEntry[str] | None]] = [("", None)]
    while waiting:
        name, within = waiting.pop()
        with os.scandir(within.path if within is not None else folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        if not entries and within is not None:
            yield name, within
        for entry in entries:
            inner = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append((inner, entry))
            else:
                yield inner, entry
