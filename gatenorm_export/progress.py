"""Progress on stderr. Stages report to a :class:`Progress`; only the command line decides whether anyone sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Task(Protocol):
    """One bar."""

    def advance(self, steps: float = 1) -> None:
        """Move the bar by ``steps``."""

    def total(self, steps: float) -> None:
        """Set or correct the number of steps once it is known."""


class Progress(Protocol):
    """What a stage needs of a progress display."""

    def task(self, label: str, total: float | None = None) -> contextlib.AbstractContextManager[Task]:
        """Show a bar while the block runs; ``total`` None is a spinner."""

    def say(self, line: str) -> None:
        """Print a line of talk."""


class _SilentTask:
    def advance(self, steps: float = 1) -> None:
        """Nothing to move."""

    def total(self, steps: float) -> None:
        """Nothing to size."""


class Quiet:
    """A progress display that shows nothing: ``--quiet``, and the default of library calls."""

    @contextlib.contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Task]:
        """A bar that nobody sees."""
        yield _SilentTask()

    def say(self, line: str) -> None:
        """A line that nobody reads."""


class _RichTask:
    def __init__(self, bars: RichProgress, label: str, total: float | None) -> None:
        self._bars = bars
        self._id = bars.add_task(label, total=total)

    def advance(self, steps: float = 1) -> None:
        self._bars.advance(self._id, steps)

    def total(self, steps: float) -> None:
        self._bars.update(self._id, total=steps)


class OnStderr:
    """Bars and talk on stderr. Where stderr is no terminal, one line per finished task instead of an animation."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Task]:
        """A bar that disappears when the block ends."""
        if not self._console.is_terminal:
            self._console.print(f"{label} ...", markup=False)
            yield _SilentTask()
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with RichProgress(*columns, console=self._console, transient=True) as bars:
            yield _RichTask(bars, label, total)

    def say(self, line: str) -> None:
        """Print a line of talk."""
        self._console.print(line, markup=False)
