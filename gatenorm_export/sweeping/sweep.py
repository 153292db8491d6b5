"""Measure every cell of a sweep, keep each as soon as it is there, and measure nothing twice."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.artifacts import sha256_of, sha256_of_text
from gatenorm_export.comparing.latency import device_name
from gatenorm_export.comparing.text import load_text
from gatenorm_export.errors import GateNormError, InputError, RefusedError
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.pruning import describe_graph
from gatenorm_export.records import (
    Convention,
    SweepCell,
    SweepFigures,
    SweepIdentity,
    SweepOrder,
    SweepReport,
    tool_versions,
)
from gatenorm_export.repairs import Repair
from gatenorm_export.sweeping.front import front_sentence, pareto_front, saving_of, speed_of
from gatenorm_export.sweeping.measuring import Bench, data_files, judged_windows
from gatenorm_export.sweeping.prepare import Subject
from gatenorm_export.sweeping.ranking import Rank, cosine_order, guard_order, weight_order

if TYPE_CHECKING:
    from gatenorm_export.calibrating import CorpusRequest

SWEEP_NAME = "sweep.json"
_CHANGED = {
    "graph": "the graph",
    "text": "the text that quality is judged on",
    "calibration": "the calibration text",
    "tools": "the versions of the tools",
    "machine": "the machine",
}


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """What to sweep. ``text`` None is the shipped one; ``despite_failure`` measures what guard calls ruined too."""

    subject: Subject
    out: Path
    drops: tuple[int, ...]
    ranks: tuple[Rank, ...]
    repairs: tuple[Repair, ...]
    calibration: CorpusRequest
    text: Path | None = None
    max_text_tokens: int = 2048
    latency: bool = True
    despite_failure: bool = False
    command: str = ""


def run_sweep(request: SweepRequest, *, progress: Progress | None = None) -> SweepReport:
    """Measure each ranking with each repair at each number of layers; ``sweep.json`` in ``out`` grows cell by cell.

    Quality is measured on the graph cut into layers, latency, cache and parameters on graphs that are really pruned,
    which are deleted afterwards. Cells that ``sweep.json`` has of the same graph, texts, tools and machine are not
    measured again. A cell that cannot be measured has a reason instead of figures.

    Raises:
        InputError: the graph, its tokenizer, a text or the ``sweep.json`` that is there is missing or damaged; a
            ranking needs scores and has none.
        RefusedError: the graph cannot be cut into layers, or not one cell could be measured.
        OutputError: the output cannot be written.
    """
    sweep = _Sweep(request, progress or Quiet())
    for rank in request.ranks:
        for repair in request.repairs:
            for drop in request.drops:
                sweep.add(rank, repair, drop)
    with contextlib.suppress(OSError):
        # Empty by now, or not ours to remove.
        (request.out / "work").rmdir()
    report = sweep.report
    if not any(cell.figures is not None for cell in report.cells):
        first = report.cells[0]
        raise RefusedError(f"{request.subject.graph}: no cell could be measured; {first.name}: {first.reason}")
    return report


class _Refused(Exception):
    """Why a cell has no figures."""


class _Sweep:
    """The cells so far, and what is known from earlier calls."""

    def __init__(self, request: SweepRequest, progress: Progress) -> None:
        from gatenorm_export.calibrating import load_corpus

        self._request, self._progress = request, progress
        subject, self._graph = request.subject, request.subject.graph
        with progress.task("read the graph"):
            self._described = describe_graph(self._graph)
            digests = [sha256_of(path) for path in (self._graph, *data_files(self._graph))]
        self._text = load_text(request.text)
        self._windows = judged_windows(self._text, subject, request.max_text_tokens, progress)
        self._corpus = load_corpus(request.calibration, self._graph.parent, subject.model)
        self._identity = SweepIdentity(
            graph=sha256_of_text(" ".join(digests)),
            text=sha256_of_text(json.dumps(self._windows.tolist())),
            calibration=self._corpus.sha256,
            tools=sha256_of_text(json.dumps(tool_versions(), sort_keys=True)),
            machine=device_name(),
        )
        self._bench: Bench | None = None
        self._failed: dict[str, str] = {}
        self._cells: list[SweepCell] = []
        previous = self._previous()
        pool = (*previous.cells, *previous.earlier) if previous is not None else ()
        self._pool = [cell for cell in pool if cell.figures is not None]
        self._orders = {(order.rank, order.repair): order for order in (previous.orders if previous else ())}
        self._base_ppl = previous.base_ppl if previous is not None else None
        for rank in request.ranks:
            # Now, so that missing scores show before anything is measured.
            if not rank.needs_text:
                described = self._described
                order = weight_order(rank, described.kept, subject.scores, described.n_layers, self._graph)
                self._orders[str(rank), None] = order
        self.report = self._save()

    def add(self, rank: Rank, repair: Repair, drop: int) -> None:
        """Measure one cell, or take its figures from an equal one, and write it down."""
        cell = SweepCell(rank=str(rank), repair=str(repair), drop=drop, layers=(), key="")
        try:
            layers = tuple(sorted(self._order(rank, repair, drop).layers[:drop]))
            # Where nothing is removed there is nothing to repair: every such cell is the base against itself.
            done = repair if layers else Repair()
            key = sha256_of_text(f"{self._identity.model_dump_json()} {layers} {done}")
            cell = cell.model_copy(update={"layers": layers, "key": key})
            cell = cell.model_copy(update={"figures": self._figures(cell, done)})
        except _Refused as refused:
            cell = cell.model_copy(update={"reason": str(refused)})
            self._progress.say(f"{cell.name}: not measured: {refused}")
        self._cells.append(cell)
        self.report = self._save()

    def _figures(self, cell: SweepCell, repair: Repair) -> SweepFigures:
        listed = ", ".join(map(str, cell.layers)) or "none"
        known = self._known(cell.key)
        if known is not None:
            self._progress.say(f"{cell.name}: layers {listed} with {repair} are measured already, reusing them")
            return known
        if cell.key in self._failed:
            raise _Refused(self._failed[cell.key])
        self._progress.say(f"{cell.name}: layers {listed}")
        bench = self._measuring()
        try:
            return bench.figures(cell.layers, repair, latency=self._request.latency, name=f"cell-{cell.key[:16]}")
        except (RefusedError, InputError) as error:
            self._failed[cell.key] = str(error)
            raise _Refused(str(error)) from error

    def _known(self, key: str) -> SweepFigures | None:
        """Figures of an equal cell; without latency they are no use to a sweep that measures it."""
        for cell in (*self._cells, *self._pool):
            if cell.key == key and cell.figures is not None and (cell.figures.latency or not self._request.latency):
                return cell.figures
        return None

    def _order(self, rank: Rank, repair: Repair, drop: int) -> SweepOrder:
        """The order that a cell takes its layers from."""
        there = len(self._described.kept)
        if drop > there:
            raise _Refused(f"cannot drop {drop} attention sublayers: there are {there}")
        name = (str(rank), str(repair) if rank.kind == "guard" else None)
        order = self._orders.get(name)
        if rank.kind == "cosine" and order is None:
            order = cosine_order(self._measuring().model, self._corpus.fitted, progress=self._progress)
        if rank.kind == "guard" and (order is None or len(order.layers) < drop):
            order = self._searched(repair, there)
        assert order is not None
        self._orders[name] = order
        if order.ruined_from is not None and drop >= order.ruined_from and not self._request.despite_failure:
            raise _Refused(f"{order.reason}; measure it all the same with --despite-failure")
        return order

    def _searched(self, repair: Repair, there: int) -> SweepOrder:
        """One search to the largest number of layers; it serves all smaller ones."""
        search = f"guard {repair}"
        if search in self._failed:
            raise _Refused(self._failed[search])
        model, count = self._measuring().model, max(drop for drop in self._request.drops if drop <= there)
        cache = self._work / f"guard-{str(repair).replace(':', '-')}.json"
        try:
            return guard_order(model, self._corpus, count, repair, cache=cache, progress=self._progress)
        except (RefusedError, InputError) as error:
            self._failed[search] = str(error)
            raise _Refused(str(error)) from error

    @property
    def _work(self) -> Path:
        return self._request.out / "work"

    def _measuring(self) -> Bench:
        if self._bench is None:
            self._bench = Bench(self._graph, self._work, self._windows, self._corpus, self._progress)
            self._base_ppl = self._bench.base_ppl
        return self._bench

    def _previous(self) -> SweepReport | None:
        """What an earlier call left, where its figures still hold."""
        path = self._request.out / SWEEP_NAME
        if not path.exists():
            return None
        try:
            report = SweepReport.load(path)
        except GateNormError as error:
            # Overwriting somebody else's file would lose it; ours from another version only costs a rerun.
            if not path.is_file() or '"kind": "sweep"' not in path.read_text(encoding="utf-8", errors="replace"):
                raise InputError(f"{path}: not the record of a sweep; choose another output folder") from error
            self._progress.say(f"{path}: of another version of gatenorm; starting anew")
            return None
        old, new = report.identity.model_dump(), self._identity.model_dump()
        changed = [words for name, words in _CHANGED.items() if old[name] != new[name]]
        if changed:
            self._progress.say(f"{path}: changed since: {', '.join(changed)}; starting anew")
            return None
        n_measured = sum(cell.figures is not None for cell in (*report.cells, *report.earlier))
        self._progress.say(f"{path}: unchanged graph and texts, {n_measured} measured cells can be reused")
        return report

    def _save(self) -> SweepReport:
        request, subject, cells = self._request, self._request.subject, tuple(self._cells)
        held = {(cell.name, cell.key) for cell in cells if cell.figures is not None}
        report = SweepReport(
            convention=subject.scores.convention if subject.scores is not None else Convention(),
            model_name=subject.model.name if subject.model is not None else str(self._graph),
            graph=str(self._graph),
            n_layers=self._described.n_layers,
            identity=self._identity,
            scores_sha256=subject.scores_sha256,
            text=self._text.name,
            n_text_tokens=int(self._windows.size),
            calibration_text=self._corpus.name,
            n_calibration_tokens=int(self._corpus.fitted.size),
            base=self._described.facts,
            base_ppl=self._base_ppl,
            orders=tuple(self._orders.values()),
            cells=cells,
            earlier=tuple(cell for cell in self._pool if (cell.name, cell.key) not in held),
            speed_front=tuple(cell.name for cell, _, _ in pareto_front(cells, speed_of)),
            kv_front=tuple(cell.name for cell, _, _ in pareto_front(cells, saving_of)),
            sentence=front_sentence(cells),
            command=request.command,
        )
        report.save(request.out / SWEEP_NAME)
        return report
