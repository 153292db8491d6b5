"""A hook of mkdocs: the pages of the command line and of its exit codes, made from the verbs' own parsers."""

from __future__ import annotations

import argparse
import contextlib
import html
import importlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gatenorm_export.cli.main import VERBS
from gatenorm_export.errors import ExitCode

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

_EXIT_CODES = """\
# Exit codes

Every verb ends with one of these. What is wrong, where, and what to do next is one line on stderr.

"""
_COMMAND_LINE = """\
# Command line

This page is made from the parsers of the verbs, so it says what `gatenorm VERB --help` says. Results go to stdout, talk
to stderr. [Exit codes](exit-codes.md) have a page of their own.

"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/cli.md", content=command_line_page()))
    files.append(File.generated(config, "reference/exit-codes.md", content=exit_codes_page()))
    return files


def command_line_page() -> str:
    """The whole page as Markdown: the verbs in a table, then a section for each."""
    rows = [f"| [`{verb}`](#{verb}) | {_text(summary)} |" for verb, summary in VERBS.items()]
    with _page_wide():
        sections = ["\n".join(_section(verb)) for verb in VERBS]
    return _COMMAND_LINE + "\n".join(["| verb | |", "|---|---|", *rows, "", *sections])


def exit_codes_page() -> str:
    """The page of the exit codes."""
    rows = [f"| {int(code)} | {_text(code.meaning)} |" for code in sorted(ExitCode)]
    return _EXIT_CODES + "\n".join(["| exit code | |", "|---|---|", *rows]) + "\n"


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of one verb, as the command line has it."""
    parser = argparse.ArgumentParser(prog=f"gatenorm {verb}", formatter_class=argparse.RawDescriptionHelpFormatter)
    importlib.import_module(f"gatenorm_export.cli.{verb}").configure(parser)
    return parser


@contextlib.contextmanager
def _page_wide() -> Iterator[None]:
    """Help would otherwise be as wide as the terminal of whoever builds the site."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "94"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _section(verb: str) -> Iterator[str]:
    parser = parser_of(verb)
    yield f"\n## `gatenorm {verb}` {{ #{verb} }}\n"
    yield from (_text(paragraph) + "\n" for paragraph in (parser.description or VERBS[verb]).split("\n\n"))
    yield f"```text\n{parser.format_usage().removeprefix('usage: ').rstrip()}\n```\n"
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            yield f"| {_text(group.title or '')} | |\n|---|---|"
            yield from (f"| {_name(action)} | {_help(parser, action)} |" for action in actions)
            yield ""
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```\n"


def _name(action: argparse.Action) -> str:
    """An argument as a user types it; a cell of a table takes no line break inside a name."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else None)
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    shown = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        return _code(str(shown))
    takes = action.nargs != 0
    return "<br>".join(_code(f"{option} {shown}" if takes else option) for option in action.option_strings)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = _text(parser._get_formatter()._expand_help(action) if action.help else "")
    return f"{text} **required**" if action.required and action.option_strings else text


def _code(text: str) -> str:
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _text(text: str) -> str:
    """Plain text of a parser as Markdown: code in backticks stays code, options become code, nothing else is markup."""
    parts = re.split(r"(`[^`]+`|(?<![\w-])--[a-z][\w-]*)", " ".join(text.split()))
    return "".join(
        f"`{part.strip('`')}`" if number % 2 else re.sub(r"([\\`*_\[\]|<>#~^])", r"\\\1", part)
        for number, part in enumerate(parts)
    )
