"""The matrix as a table for people and as Markdown for the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmarks.matrix.judge import Outcome, Verdict

if TYPE_CHECKING:
    from rich.table import Table

# Order of the columns; an outcome that nothing had gets no column.
_COLUMNS: tuple[Outcome, ...] = (
    "faithful",
    "partly refused",
    "refused",
    "WRONG",
    "crashed",
    "blunt",
    "not run",
    "not exported",
    "no environment",
)
_GOOD: tuple[Outcome, ...] = ("faithful",)
# Nothing to prune, so nothing to explain at length.
_NO_GRAPH: tuple[Outcome, ...] = ("not exported", "not run", "no environment")


def counts(verdicts: Sequence[Verdict]) -> tuple[list[Outcome], dict[str, Counter[str]]]:
    """Outcomes that occur, and how often each has them, by exporter; encoders count with their decoders' exporter."""
    table: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        table.setdefault(verdict.exporter.removesuffix("-encoder"), Counter())[verdict.outcome] += 1
    used = {verdict.outcome for verdict in verdicts}
    return [column for column in _COLUMNS if column in used], table


def rich_table(verdicts: Sequence[Verdict]) -> Table:
    """Counts by exporter."""
    from rich.table import Table

    columns, rows = counts(verdicts)
    table = Table(title="Graphs by exporter and outcome")
    table.add_column("exporter", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(str(row[column] or "") for column in columns))
    total = Counter(verdict.outcome for verdict in verdicts)
    table.add_section()
    table.add_row("all", *(str(total[column]) for column in columns))
    return table


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The same for the documentation, and below it what was not faithful, with reasons."""
    columns, rows = counts(verdicts)
    lines = [_row(["exporter", *columns]), _row(["---", *("---:" for _ in columns)])]
    lines += [_row([name, *(row[column] or "" for column in columns)]) for name, row in rows.items()]
    total = Counter(verdict.outcome for verdict in verdicts)
    lines.append(_row(["**all**", *(total[column] for column in columns)]))
    rest = explained(verdicts)
    return "\n".join([*lines, "", *(f"- {line}" for line in rest)]) + "\n"


def explained(verdicts: Sequence[Verdict]) -> list[str]:
    """One line for each reason that occurs, with the cells that have it."""
    cells: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome not in (*_GOOD, *_NO_GRAPH):
            cells.setdefault((verdict.outcome, verdict.reason), []).append(verdict)
    return [f"{outcome}: {_places(where)}: {reason}" for (outcome, reason), where in cells.items()]


def _places(verdicts: Sequence[Verdict]) -> str:
    return ", ".join(
        f"{verdict.exporter} x {verdict.family}{f' ({verdict.graph})' if verdict.graph else ''}" for verdict in verdicts
    )


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
