"""Many tasks of one command: what each made is put into place as it comes, and one that fails stops no other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from gatenorm_export.errors import GateNormError
from gatenorm_export.executing.tasks import Executor, Outcome, Task
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import FileDigest
from gatenorm_export.records.batch import BatchReport, TaskDone, TaskFailed

Place = Callable[[Outcome], Sequence[Path]]
"""Writes what a task made under its final names, and tells them."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """How every task ended, by its name. ``told`` says that each error was shown as it came."""

    done: dict[str, TaskDone]
    errors: dict[str, GateNormError]
    told: bool = False

    def report(self, verb: Literal["build", "bench"], command: str) -> BatchReport:
        """The same as a record."""
        failed = [
            TaskFailed(name=name, error=str(error), exit_code=int(error.exit_code))
            for name, error in self.errors.items()
        ]
        return BatchReport(verb=verb, command=command, done=tuple(self.done.values()), failed=tuple(failed))

    def raise_failures(self) -> None:
        """Let a failure be the command's: of one task as it is, of several in one line, by the class of the first.

        Reasons that were told are not told again.

        Raises:
            GateNormError: a task failed.
        """
        errors = list(self.errors.items())
        if not errors:
            return
        kind, said = type(errors[0][1]), str(errors[0][1])
        if len(errors) + len(self.done) == 1:
            raise kind(said)
        counted = f"{len(errors)} of {len(errors) + len(self.done)} failed"
        if self.told:
            raise kind(f"{counted}, for the reasons above: {', '.join(self.errors)}")
        # What became of a lost worker's task begins with its name already.
        listed = "; ".join(f"{name}: {str(error).removeprefix(f'{name}: ')}" for name, error in errors)
        raise kind(f"{counted}: {listed}")


def run_batch(tasks: Sequence[Task], executor: Executor, place: Place, *, out: Path, progress: Progress) -> Batch:
    """Have tasks of different names done. ``out`` is the folder that ``place`` puts files under.

    Raises:
        RefusedError: no machine of the executor's has what a task needs.
    """
    for task in tasks:
        executor.submit(task)
    done: dict[str, TaskDone] = {}
    errors: dict[str, GateNormError] = {}
    with contextlib.ExitStack() as stack:
        # In this process a task shows its own progress, and two bars do not fit one terminal.
        bar = None if executor.in_process else stack.enter_context(progress.task("do the tasks", total=len(tasks)))
        for outcome in executor.finished():
            name = outcome.task.name
            try:
                done[name] = _placed(outcome, place, out)
                progress.say(f"{name}: done on {done[name].worker.host}")
            except GateNormError as error:
                errors[name] = error
                # What fails alone is told once, by whoever raises it.
                if len(tasks) > 1:
                    progress.say(f"{name}: failed: {str(error).removeprefix(f'{name}: ')}")
            if bar is not None:
                bar.advance()
    names = [task.name for task in tasks]
    return Batch(
        {name: done[name] for name in names if name in done},
        {name: errors[name] for name in names if name in errors},
        told=not isinstance(progress, Quiet),
    )


def _placed(outcome: Outcome, place: Place, out: Path) -> TaskDone:
    outcome.result()
    assert outcome.worker is not None
    return TaskDone(
        name=outcome.task.name,
        files=tuple(FileDigest.of(path, folder=out) for path in place(outcome)),
        worker=outcome.worker,
        seconds=outcome.seconds,
        reused=outcome.reused,
    )
