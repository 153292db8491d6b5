"""The executor that needs nothing: tasks run in this process, one after the other."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.errors import GateNormError
from gatenorm_export.executing.machine import this_machine
from gatenorm_export.executing.running import check_inputs, do, scratch_folder
from gatenorm_export.executing.store import ArtifactStore
from gatenorm_export.executing.tasks import Outcome, Resources, Task
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import FileDigest
from gatenorm_export.records.task import Machine


class LocalExecutor:
    """Runs a task when its outcome is asked for. Artifacts and scratch folders lie in ``folder``."""

    in_process = True

    def __init__(self, folder: Path, *, progress: Progress | None = None) -> None:
        self._store = ArtifactStore(folder)
        self._progress = progress or Quiet()
        self._waiting: collections.deque[Task] = collections.deque()
        self._machine: Machine | None = None

    def machines(self, resources: Resources | None = None) -> tuple[Machine, ...]:
        """This one."""
        if self._machine is None:
            self._machine = this_machine()
        return (self._machine,)

    def submit(self, task: Task) -> None:
        """Put it last in the row."""
        self._waiting.append(task)

    def finished(self) -> Iterator[Outcome]:
        """Run each task in turn. Only errors of gatenorm are outcomes; what is a defect is raised here."""
        while self._waiting:
            yield self._outcome(self._waiting.popleft())

    def artifact(self, artifact: FileDigest) -> Path:
        """Where it lies in the store; see :class:`Executor`."""
        return self._store.get(artifact)

    def close(self) -> None:
        """Forget what has not run."""
        self._waiting.clear()

    def _outcome(self, task: Task) -> Outcome:
        worker = self.machines()[0]
        try:
            with scratch_folder(self._store.folder) as scratch:
                done = do(task, check_inputs(task), scratch, self._progress)
                for artifact in done.artifacts:
                    assert done.folder is not None
                    self._store.take(done.folder / artifact.name, artifact)
        except GateNormError as error:
            return Outcome(task, worker, error=error)
        return Outcome(task, worker, done.value, done.artifacts, seconds=done.seconds)
