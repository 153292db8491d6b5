"""``gatenorm completion SHELL``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gatenorm_export.cli.console import Terminal
from gatenorm_export.cli.manual import describe
from gatenorm_export.cli.options import add_output
from gatenorm_export.errors import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    describe(
        parser,
        "Print a script that completes verbs, options, their values and file names in a shell.",
        examples=(
            ("bash", "gatenorm completion bash > ~/.local/share/bash-completion/completions/gatenorm"),
            ("zsh, into a folder of $fpath", "gatenorm completion zsh > ~/.zsh/completions/_gatenorm"),
            ("tcsh, into a file that ~/.tcshrc sources", "gatenorm completion tcsh > ~/.gatenorm.tcsh"),
        ),
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that will read it")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script; with ``--json`` as a field of an object."""
    import shtab

    from gatenorm_export.cli.main import make_parser

    parser = make_parser()
    _complete_files(parser, shtab.FILE)
    script = shtab.complete(parser, shell=args.shell)
    record = {"schema": 1, "kind": "completion", "shell": args.shell, "script": script}
    Terminal.of(args).text(record, script)
    return int(ExitCode.OK)


def _complete_files(parser: argparse.ArgumentParser, completer: Any) -> None:
    """Let every argument that is a path, or may be one, complete file names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in set(action.choices.values()):
                _complete_files(subparser, completer)
        elif action.type is Path or action.dest == "model":
            completed: Any = action
            completed.complete = completer
