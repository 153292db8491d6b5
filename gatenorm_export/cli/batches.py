"""Several builds or benchmarks in one command, in this process or on a cluster, and what is common to both."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gatenorm_export.cli.executor_options import executor_of
from gatenorm_export.errors import UsageError
from gatenorm_export.progress import Progress
from gatenorm_export.records.batch import BatchReport

if TYPE_CHECKING:
    from gatenorm_export.executing import Executor

BATCH_NAME = "batch.json"
# Files that are called so lie in a folder that tells them apart.
_COMMON_STEMS = frozenset({"model", "plan"})


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for what each path becomes: its folder's for ``model.onnx`` or ``plan.json``, else its own.

    Where two would have one name, as the ``pruned/`` of two runs, all are called by as many folders above as it takes.

    Raises:
        UsageError: a path is named twice, or two cannot be told apart.
    """
    tails = [_tail(path) for path in paths]
    for path, tail in zip(paths, tails, strict=True):
        if tails.count(tail) > 1:
            raise UsageError(f"{path}: is named twice, or has the name of another one; name each once")
    for depth in range(1, max(map(len, tails)) + 1):
        names = ["-".join(tail[-depth:]) for tail in tails]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise UsageError(f"{', '.join(map(str, paths))}: two would have one name; copy one under another name")


def _tail(path: Path) -> tuple[str, ...]:
    """The folders of a path and its own name, which ends it unless its folder tells more."""
    whole = path.resolve()
    own = whole.name if path.is_dir() else path.stem
    folders = whole.parent.parts[1:]
    return folders if own in _COMMON_STEMS and folders else (*folders, own)


def batch_folder(out: Path | None, *, verb: str) -> Path:
    """The folder of several results.

    Raises:
        UsageError: none is named, or a file is.
    """
    if out is None or out.is_file() or out.suffix in {".engine", ".json"}:
        raise UsageError(f"several results of {verb} need a folder; name one with -o")
    return out


@contextlib.contextmanager
def remembering(args: argparse.Namespace, folder: Path, progress: Progress) -> Iterator[Executor]:
    """The executor that the options name. What it has done is kept in ``folder``/work, and not done again.

    Raises:
        InputError: no cluster answers.
        MissingPartError: ray is not installed.
    """
    from gatenorm_export.executing import Remembering

    tasks = folder / "work" / "tasks"
    with executor_of(args, tasks, progress) as executor:
        yield Remembering(executor, tasks, progress=progress)


def batch_table(report: BatchReport, title: str, columns: Sequence[str], rows: dict[str, tuple[str, ...]]) -> Table:
    """A row for each task: the verb's own ``columns``, where it was done, and in what time."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    for column in ("", *columns, "done on", "seconds"):
        table.add_column(column, overflow="fold")
    for task in report.done:
        seconds = "done before" if task.reused else f"{task.seconds:,.1f}"
        table.add_row(task.name, *rows[task.name], task.worker.host, seconds)
    for failed in report.failed:
        table.add_row(failed.name, "failed", *("" for _ in columns))
    return table
