"""What a verb needs of the terminal: results on stdout, talk on stderr, one JSON object when asked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from rich.console import Console, RenderableType

from gatenorm_export.errors import ExitCode
from gatenorm_export.progress import OnStderr, Progress, Quiet


def complain(text: str) -> None:
    """An error, in one line on stderr, also where talk is not wanted."""
    sys.stderr.write(f"gatenorm: {' '.join(text.split())}\n")


@dataclasses.dataclass(frozen=True)
class Terminal:
    """Where a verb's output goes."""

    json: bool
    progress: Progress

    @classmethod
    def of(cls, args: argparse.Namespace) -> Terminal:
        """The terminal that ``--json`` and ``--quiet`` ask for."""
        return cls(args.json, Quiet() if args.quiet else OnStderr())

    def result(self, record: dict[str, Any], *shown: RenderableType) -> None:
        """Print the verb's result: ``record`` as one JSON object with ``--json``, else ``shown`` for a person."""
        if self.json:
            sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
            return
        # Names from files are shown as they are: no markup, no emoji in them.
        console = Console(highlight=False, markup=False, emoji=False)
        for item in shown:
            console.print(item)

    def text(self, record: dict[str, Any], text: str) -> None:
        """Print a result that another program reads as it is; ``record`` with ``--json``."""
        sys.stdout.write(json.dumps(record, allow_nan=False) + "\n" if self.json else text)

    def end(self, code: ExitCode, *why: str) -> int:
        """The exit code of a verb that came to its end; where it is no success, ``why`` goes to stderr in one line."""
        if code is not ExitCode.OK:
            complain("; ".join(why))
        return int(code)

    def say(self, line: str) -> None:
        """Talk to a person; silent with ``--quiet``."""
        self.progress.say(line)
