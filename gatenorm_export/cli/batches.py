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
from gatenorm_export.errors import InputError
from gatenorm_export.progress import Progress
from gatenorm_export.records.batch import BatchReport

if TYPE_CHECKING:
    from gatenorm_export.executing import Executor

BATCH_NAME = "batch.json"
# Files that are called so lie in a folder that tells them apart.
_COMMON_STEMS = frozenset({"model", "plan"})


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for what each path becomes: its folder's for ``model.onnx`` or ``plan.json``, else its own.

    Raises:
        InputError: two have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        whole = path.resolve()
        own = whole.name if path.is_dir() else path.stem
        name = whole.parent.name if own in _COMMON_STEMS else own
        if name in found:
            raise InputError(f"{found[name]} and {path} would both be called {name}; copy one under another name")
        found[name] = path
    return found


def batch_folder(out: Path | None, *, verb: str) -> Path:
    """The folder of several results.

    Raises:
        InputError: none is named, or a file is.
    """
    if out is None or out.is_file() or out.suffix in {".engine", ".json"}:
        raise InputError(f"several results of {verb} need a folder; name one with -o")
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
