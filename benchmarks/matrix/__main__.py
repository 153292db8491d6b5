"""Judge the surgery on real exports: families x exporters.

    python -m benchmarks.matrix [--exporter X,Y] [--family A,B] [--json OUT] [--markdown] [--cache DIR]
    python -m benchmarks.matrix --results benchmarks/results/matrix.json --markdown

Exporters of the other transformers version run through the interpreter that GATENORM_TRANSFORMERS5_PYTHON names.
Graphs are kept in the cache, so a second run only prunes and compares. The exit status is 1 when a cell is WRONG or
crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from benchmarks.matrix import cells, models
from benchmarks.matrix.judge import Outcome, Verdict, judge_cell
from benchmarks.matrix.producing import EnvironmentMissing, ExportFailed, Request, prepare, transformers_major, versions
from benchmarks.matrix.tables import explained, markdown, rich_table

DEFAULT_CACHE = Path("build/matrix")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells that were asked for, cheap ones first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exporter", type=_names(cells.NAMES), default=cells.NAMES, help="names, by commas")
    parser.add_argument("--family", type=_names(models.NAMES), default=models.NAMES, help="names, by commas")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help=f"exported graphs ({DEFAULT_CACHE})")
    parser.add_argument("--json", type=Path, help="write every trial of every cell")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        help="run nothing: show what these files hold, the last one's word for a cell",
    )
    parser.add_argument("--markdown", action="store_true", help="print the documentation's table instead")
    parser.add_argument(
        "--framework-references", action="store_true", help="export every reference; do not zero it in the graph's copy"
    )
    args = parser.parse_args(argv)
    if args.results:
        held = [record for path in args.results for record in json.loads(path.read_text())["verdicts"]]
        verdicts = [Verdict.from_json(record) for record in held]
        verdicts = list({(verdict.exporter, verdict.family, verdict.graph): verdict for verdict in verdicts}.values())
        return _finish(args, verdicts, seconds=0.0)
    wanted = [
        (exporter, row) for exporter, row in cells.cells() if exporter.name in args.exporter and row.name in args.family
    ]
    if not wanted:
        sys.exit(f"{', '.join(args.exporter)} takes none of {', '.join(args.family)}")
    # This environment first: it is the cheaper one.
    wanted.sort(key=lambda cell: (cell[0].transformers != transformers_major(), args.exporter.index(cell[0].name)))
    start = time.perf_counter()
    verdicts = []
    try:
        for verdict in _judged(wanted, args.cache, by_value=not args.framework_references):
            verdicts.append(verdict)
            print(_line(verdict), file=sys.stderr, flush=True)
    finally:
        # An interrupted run keeps what it has.
        status = _finish(args, verdicts, seconds=time.perf_counter() - start)
    return status


def _finish(args: argparse.Namespace, verdicts: list[Verdict], *, seconds: float) -> int:
    """Write and show the verdicts; the exit status."""
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(_record(verdicts, seconds), indent=1) + "\n")
    if args.markdown:
        print(markdown(verdicts), end="")
    else:
        from rich.console import Console

        console = Console()
        console.print(rich_table(verdicts))
        for line in explained(verdicts):
            console.print(line, highlight=False, markup=False)
    return int(any(verdict.outcome in ("WRONG", "crashed") for verdict in verdicts))


def _judged(
    wanted: Sequence[tuple[cells.Exporter, models.Family]], cache: Path, *, by_value: bool
) -> Iterator[Verdict]:
    for made_by, group in itertools.groupby(wanted, key=lambda cell: cell[0]):
        rows = [row for _, row in group]
        # One process for the whole line; what fails in it is tried and reported cell by cell.
        with contextlib.suppress(ExportFailed, EnvironmentMissing):
            prepare([Request(cache, made_by, row) for row in rows])
        for row in rows:
            yield from judge_cell(cache, made_by, row, by_value=by_value)


def _names(existing: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in existing]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are: {', '.join(existing)}")
        return names

    return parse


def _line(verdict: Verdict) -> str:
    place = f"{verdict.exporter:26}{verdict.family:20}{verdict.graph:25}"
    return f"{place}{verdict.outcome:15}{verdict.worst:8.1e} {verdict.seconds:6.1f} s  {verdict.reason}"


def _record(verdicts: list[Verdict], seconds: float) -> dict[str, object]:
    return {
        "schema": 1,
        "kind": "faithfulness-matrix",
        "versions": versions(),
        "seconds": round(seconds, 1),
        "counts": {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in get_args(Outcome)},
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }


if __name__ == "__main__":
    sys.exit(main())
