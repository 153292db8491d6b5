"""Nothing is done twice: an executor that keeps what was done in a folder and looks there first."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.errors import InputError
from gatenorm_export.executing.store import ArtifactStore
from gatenorm_export.executing.tasks import Executor, Outcome, Resources, Task
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import FileDigest
from gatenorm_export.records.task import Machine, TaskRecord


class Remembering:
    """``inner``, with a record of every finished task in ``folder``, whose artifacts ``inner`` keeps there too.

    A task whose record and artifacts are whole is not run, nor is one while an equal one is under way. What failed is
    not remembered.
    """

    def __init__(self, inner: Executor, folder: Path, *, progress: Progress | None = None) -> None:
        self._inner, self._folder = inner, folder
        self._store = ArtifactStore(folder)
        self._progress = progress or Quiet()
        self._known: collections.deque[Outcome] = collections.deque()
        self._equal: dict[str, list[Task]] = {}

    @property
    def in_process(self) -> bool:
        """As ``inner``."""
        return self._inner.in_process

    def machines(self, resources: Resources | None = None) -> tuple[Machine, ...]:
        """As ``inner``."""
        return self._inner.machines(resources)

    def submit(self, task: Task) -> None:
        """Take on a task, which may be done already."""
        known = self._remembered(task)
        if known is not None:
            self._progress.say(f"{task.name}: done already, reusing it")
            self._known.append(known)
        elif task.key in self._equal:
            self._equal[task.key].append(task)
        else:
            self._inner.submit(task)
            self._equal[task.key] = [task]

    def finished(self) -> Iterator[Outcome]:
        """Outcomes as they come, an own one for each of several equal tasks."""
        while self._known or self._equal:
            while self._known:
                yield self._known.popleft()
            for outcome in self._inner.finished():
                tasks = self._equal.pop(outcome.task.key)
                if outcome.error is None:
                    self._keep(outcome)
                yield outcome
                for task in tasks[1:]:
                    yield Outcome(
                        task,
                        outcome.worker,
                        outcome.value,
                        outcome.artifacts,
                        outcome.error,
                        outcome.lost,
                        reused=True,
                        seconds=outcome.seconds,
                    )
                while self._known:
                    yield self._known.popleft()

    def artifact(self, artifact: FileDigest) -> Path:
        """Where it lies; see :class:`Executor`."""
        return self._store.get(artifact)

    def close(self) -> None:
        """As ``inner``."""
        self._inner.close()

    def _place(self, task: Task) -> Path:
        return self._folder / f"{task.key}.task.json"

    def _remembered(self, task: Task) -> Outcome | None:
        path = self._place(task)
        if not path.is_file():
            return None
        try:
            record = TaskRecord.load(path)
        except InputError:
            # Damaged, or of another version: doing it again is all that it costs.
            return None
        if record.key != task.key or not all(self._store.holds(artifact) for artifact in record.artifacts):
            return None
        return Outcome(task, record.worker, record.value, record.artifacts, reused=True, seconds=record.seconds)

    def _keep(self, outcome: Outcome) -> None:
        task = outcome.task
        assert outcome.worker is not None
        TaskRecord(
            key=task.key,
            name=task.name,
            function=task.function,
            inputs=tuple(FileDigest(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in task.inputs),
            value=outcome.value,
            artifacts=outcome.artifacts,
            worker=outcome.worker,
            seconds=outcome.seconds,
        ).save(self._place(task))
