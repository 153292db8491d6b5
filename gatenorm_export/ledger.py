"""The book that a run folder keeps: which stage made which file from what, so that nothing is done twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import InputError
from gatenorm_export.graphs import MANIFEST_NAME
from gatenorm_export.progress import Progress
from gatenorm_export.records import Artifact, ModelSpec, RunManifest, StageEntry, tool_versions
from gatenorm_export.small_files import read_small


class Ledger:
    """Runs stages in a folder and records them in ``manifest.json`` there, after each one, so that a run can resume."""

    def __init__(self, folder: Path, model: ModelSpec, command: str, *, force: bool, progress: Progress) -> None:
        self._folder = folder
        self._force = force
        self._progress = progress
        previous = self._previous()
        self._old = dict(previous.stages) if previous is not None else {}
        self._manifest = RunManifest(command=command, model=model)
        self.reused: list[str] = []

    def stage(
        self,
        name: str,
        decides: Mapping[str, Any],
        parents: Iterable[str],
        produce: Callable[[], Iterable[Path]],
    ) -> bool:
        """Run ``produce`` unless the folder already holds what it would make; return whether it ran.

        ``decides`` and ``parents`` (sha256 of the inputs) together with the versions of the tools decide the result.
        An earlier result counts only while every file of it is there and has the recorded digest.
        """
        parents = tuple(parents)
        key = _digest({"stage": name, "decides": decides, "parents": parents, "versions": tool_versions()})
        entry = self._old.get(name)
        reuse = not self._force and entry is not None and entry.key == key and self._intact(entry)
        if reuse and entry is not None:
            self._progress.say(f"{name}: unchanged inputs, reusing {', '.join(a.path for a in entry.artifacts[:3])}")
            self.reused.append(name)
        else:
            artifacts = tuple(self._artifact(path, parents) for path in produce())
            entry = StageEntry(key=key, artifacts=artifacts)
        self._update(stages={**self._manifest.stages, name: entry})
        return not reuse

    def skip(self, name: str, reason: str) -> None:
        """Record that a stage was not run, and say why."""
        self._progress.say(f"{name}: not run: {reason}")
        self._update(not_run={**self._manifest.not_run, name: reason})

    def describe(self, **fields: Any) -> None:
        """Set fields of the manifest, such as the layer map."""
        self._update(**fields)

    def sha256(self, name: str, path: str) -> str:
        """The digest of one artifact of a stage."""
        return next(artifact.sha256 for artifact in self._manifest.stages[name].artifacts if artifact.path == path)

    def paths(self, name: str) -> tuple[Path, ...]:
        """The files of a stage."""
        return tuple(self._folder / artifact.path for artifact in self._manifest.stages[name].artifacts)

    def _update(self, **fields: Any) -> None:
        self._manifest = self._manifest.model_copy(update=fields)
        self._manifest.save(self._folder / MANIFEST_NAME)

    def _previous(self) -> RunManifest | None:
        path = self._folder / MANIFEST_NAME
        if not path.exists():
            return None
        try:
            return RunManifest.load(path)
        except InputError:
            # Overwriting somebody else's manifest would lose it; ours from another version only costs a rerun.
            if '"kind": "run"' not in read_small(path).decode("utf-8", "replace"):
                raise InputError(f"{path}: not the manifest of a run; choose another output folder") from None
            return None

    def _intact(self, entry: StageEntry) -> bool:
        for artifact in entry.artifacts:
            path = self._folder / artifact.path
            if not path.resolve().is_relative_to(self._folder.resolve()) or not path.is_file():
                return False
            if path.stat().st_size != artifact.bytes or sha256_of(path) != artifact.sha256:
                return False
        return bool(entry.artifacts)

    def _artifact(self, path: Path, parents: tuple[str, ...]) -> Artifact:
        return Artifact(
            path=path.relative_to(self._folder).as_posix(),
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
            parents=parents,
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
