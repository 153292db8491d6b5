"""Everything gatenorm refuses, as a handful of exceptions with an exit code each.

A message is one line: what is wrong, where, and what to do next. The command line prints it as it is, so a stage
that raises one of these needs no knowledge of terminals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import IntEnum

# A message names files, tensors and what to do; some paths are long.
_LONGEST = 800


class ExitCode(IntEnum):
    """The documented exit codes of every verb."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_INPUT = 3
    MISSING_PART = 4
    REFUSED = 5
    OUTPUT = 6
    UNFAITHFUL = 10
    THRESHOLD = 11
    REGRESSION = 12
    TAMPERED = 13
    BUSY = 14
    UNDECIDED = 15
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """What it tells a pipeline, as the help and the documentation say it."""
        return _MEANINGS[self]


_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.INTERNAL: "a defect in gatenorm (please report the traceback)",
    ExitCode.USAGE: "wrong usage of the command line: an option, its value, or two that do not go together",
    ExitCode.BAD_INPUT: "an input is missing, damaged, or not what the verb works on",
    ExitCode.MISSING_PART: "a package or program that this stage needs is not installed; the message names it",
    ExitCode.REFUSED: "refused: what was asked cannot be done as asked",
    ExitCode.OUTPUT: "the output cannot be written",
    ExitCode.UNFAITHFUL: "the pruned graph does not compute what it should (faithfulness failed)",
    ExitCode.THRESHOLD: "a limit was missed (--max-ppl-ratio, --max-kl, --min-speedup, --min-cosine, --min-agreement), "
    "or a --control",
    ExitCode.REGRESSION: "a row is slower than the baseline allows (bench --max-regression), or was not measured",
    ExitCode.TAMPERED: "a bundle is not what it was when it was made",
    ExitCode.BUSY: "another gatenorm is writing the same output; the message names it",
    ExitCode.UNDECIDED: "a --control or --max-regression of bench is not decided: intervals are too wide; measure more",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C or SIGTERM; finished stages are kept",
}


class GateNormError(Exception):
    """A condition that the user can understand and act on. Its text is one line."""

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, text: str) -> None:
        super().__init__(readable(text))


class InputError(GateNormError):
    """A file or folder given to us is missing, damaged, or not what the verb works on."""

    exit_code = ExitCode.BAD_INPUT


class UsageError(InputError):
    """The command line itself is wrong, whatever its inputs are: a value that no option takes, options at odds."""

    exit_code = ExitCode.USAGE


class TamperedError(InputError):
    """A bundle is not what it was when it was made: a file was added, removed or changed, or its manifest was."""

    exit_code = ExitCode.TAMPERED


class MissingPartError(GateNormError):
    """A package that this stage needs is not installed; the message names ``extra``, which brings it, or what to do."""

    exit_code = ExitCode.MISSING_PART

    def __init__(self, text: str, extra: str | None = None) -> None:
        super().__init__(text)
        self.extra = extra


class RefusedError(GateNormError):
    """The request is understood but cannot be carried out, such as dropping a layer that does not exist."""

    exit_code = ExitCode.REFUSED


class NoEngineError(RefusedError):
    """No engine of a flavour can hold a graph: the text names the operator that it neither takes nor is lowered."""


class OutputError(GateNormError):
    """The result cannot be written: no permission, no space, a file in the way."""

    exit_code = ExitCode.OUTPUT


class BusyError(GateNormError):
    """Another process is writing the same output; the message names it."""

    exit_code = ExitCode.BUSY


def readable(text: str) -> str:
    """The text as one line of characters that can be shown, its middle left out where it is endless.

    Names in it may come from a file of a stranger's: what would move a terminal's cursor is written out instead.
    """
    line = " ".join(text.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST * 2 // 3]} ... {line[-_LONGEST // 4 :]}"
    return line if line.isprintable() else "".join(map(_shown, line))


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")


@contextlib.contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import inside this block what ``what`` needs; where that fails, the message names the extra that brings it.

    Raises:
        MissingPartError: an import failed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingPartError(f"{what} needs more than is installed: {pip_install(extra)} ({error})", extra) from error


def pip_install(*extras: str) -> str:
    """The command that brings these extras, or gatenorm alone."""
    named = f"[{','.join(extras)}]" if any(extras) else ""
    return f'pip install "gatenorm{named}"'
