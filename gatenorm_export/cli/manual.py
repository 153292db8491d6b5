"""The help of a verb as a small manual page: what it does, examples that can be typed, exit codes."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable

from gatenorm_export.errors import ExitCode

_OF_EVERY_VERB = (
    ExitCode.OK,
    ExitCode.INTERNAL,
    ExitCode.USAGE,
    ExitCode.BAD_INPUT,
    ExitCode.MISSING_PART,
    ExitCode.REFUSED,
    ExitCode.OUTPUT,
    ExitCode.BUSY,
    ExitCode.INTERRUPTED,
)


def describe(
    parser: argparse.ArgumentParser, text: str, *, examples: Iterable[tuple[str, str]], codes: Iterable[ExitCode] = ()
) -> None:
    """Give ``parser`` its help: ``text``, paragraphs apart by empty lines; ``examples``, each what it does and the
    command; and ``codes``, the exit codes that this verb has beyond those of every verb."""
    parser.description = "\n\n".join(_filled(paragraph) for paragraph in text.split("\n\n"))
    shown = "\n".join(f"{_filled(what, '  ')}\n    {command}" for what, command in examples)
    parser.epilog = f"examples:\n{shown}\n\n{exit_codes({*_OF_EVERY_VERB, *codes})}"


def exit_codes(codes: Iterable[ExitCode] = ExitCode) -> str:
    """A table of exit codes and their meanings."""
    rows = (_filled(code.meaning, f"  {int(code):<4}", " " * 6) for code in sorted(codes))
    return "\n".join(("exit codes:", *rows))


def _filled(text: str, first: str = "", others: str | None = None) -> str:
    # Two less than the terminal, as argparse has it.
    width = max(shutil.get_terminal_size().columns - 2, 40)
    others = first if others is None else others
    return textwrap.fill(
        " ".join(text.split()), width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )
