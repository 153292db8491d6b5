"""Have every cell of a sweep measured, keep each as soon as it is there, and measure nothing twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gatenorm_export.artifacts import sha256_of_text
from gatenorm_export.comparing.text import load_text
from gatenorm_export.errors import RefusedError
from gatenorm_export.executing import Executor, InputFile, LocalExecutor, Outcome, Task
from gatenorm_export.executing.model_files import graph_inputs
from gatenorm_export.executing.tasks import known_sha256
from gatenorm_export.graphs import data_files
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
from gatenorm_export.sweeping.cells import TOKENS_NAME, cell_task, forgetting, order_task, save_tokens
from gatenorm_export.sweeping.earlier import earlier_report
from gatenorm_export.sweeping.front import front_sentence, pareto_front, saving_of, speed_of
from gatenorm_export.sweeping.measuring import judged_windows
from gatenorm_export.sweeping.ranking import weight_order
from gatenorm_export.sweeping.request import SWEEP_NAME, SweepRequest, machines_in_words


def run_sweep(
    request: SweepRequest, *, executor: Executor | None = None, progress: Progress | None = None
) -> SweepReport:
    """Measure each ranking with each repair at each number of layers; ``sweep.json`` in ``out`` grows cell by cell.

    Quality is measured on the graph cut into layers, latency, cache and parameters on graphs that are really pruned,
    which are deleted afterwards. Cells that ``sweep.json`` has of the same graph, texts, tools and machine are not
    measured again. A cell that cannot be measured has a reason instead of figures. ``executor`` measures cells, one
    after the other in this process unless one is given; the report is the same, but for the scatter of times.

    Raises:
        InputError: the graph, its tokenizer, a text or the ``sweep.json`` that is there is missing or damaged; a
            ranking needs scores and has none.
        RefusedError: the graph cannot be cut into layers, or not one cell could be measured; or times were to be
            compared that machines of different kinds would take.
        OutputError: the output cannot be written.
    """
    progress = progress or Quiet()
    work = request.out / "work"
    try:
        with forgetting():
            sweep = _Sweep(request, executor or LocalExecutor(work / "tasks", progress=progress), progress)
            report = sweep.run()
    finally:
        (work / TOKENS_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            # Empty by now, or not ours to remove.
            work.rmdir()
    if not any(cell.figures is not None for cell in report.cells):
        first = report.cells[0]
        raise RefusedError(f"{request.subject.graph}: no cell could be measured; {first.name}: {first.reason}")
    return report


class _Refused(Exception):
    """Why a cell has no figures."""


class _Waiting(Exception):
    """A cell's order is being searched."""


class _Sweep:
    """The cells so far, and what is known from earlier calls."""

    def __init__(self, request: SweepRequest, executor: Executor, progress: Progress) -> None:
        from gatenorm_export.calibrating import load_corpus

        self._request, self._executor, self._progress = request, executor, progress
        subject, self._graph = request.subject, request.subject.graph
        with progress.task("read the graph"):
            self._described = describe_graph(self._graph)
            digests = [known_sha256(path) for path in (self._graph, *data_files(self._graph))]
        self._text = load_text(request.text)
        self._windows = judged_windows(self._text, subject, request.max_text_tokens, progress)
        self._corpus = load_corpus(request.calibration, self._graph.parent, subject.model)
        self._identity = SweepIdentity(
            graph=sha256_of_text(" ".join(digests)),
            text=sha256_of_text(json.dumps(self._windows.tolist())),
            calibration=self._corpus.sha256,
            tools=sha256_of_text(json.dumps(tool_versions(), sort_keys=True)),
            machine=machines_in_words(executor, timed=request.latency),
        )
        self._shared: tuple[InputFile, ...] = ()
        self._asked = [
            (rank, repair, drop) for rank in request.ranks for repair in request.repairs for drop in request.drops
        ]
        self._cells: dict[int, SweepCell] = {}
        self._failed: dict[str, str] = {}
        # What is under way: by its key, a function that takes its outcome.
        self._takers: dict[str, Callable[[Outcome], None]] = {}
        self._waiting: dict[str, list[int]] = {}
        previous = earlier_report(request.out / SWEEP_NAME, self._identity, progress)
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

    def run(self) -> SweepReport:
        """Measure what is not known, and write down each cell as it is there."""
        for index in range(len(self._asked)):
            self._begin(index)
        if not self._takers:
            return self.report
        with contextlib.ExitStack() as stack:
            bar = None
            if not self._executor.in_process:
                bar = stack.enter_context(self._progress.task("measure cells", total=len(self._asked)))
                bar.advance(len(self._cells))
            for outcome in self._executor.finished():
                before = len(self._cells)
                self._takers.pop(outcome.task.name)(outcome)
                if bar is not None:
                    bar.advance(len(self._cells) - before)
        return self.report

    def _begin(self, index: int) -> None:
        """Take a cell's figures from an equal one, or have it measured."""
        rank, repair, drop = self._asked[index]
        cell = SweepCell(rank=str(rank), repair=str(repair), drop=drop, layers=(), key="")
        try:
            layers = tuple(sorted(self._order(index).layers[:drop]))
            # Where nothing is removed there is nothing to repair: every such cell is the base against itself.
            done = repair if layers else Repair()
            key = sha256_of_text(f"{self._identity.model_dump_json()} {layers} {done}")
            cell = cell.model_copy(update={"layers": layers, "key": key})
            figures = self._figures(index, cell, done)
        except _Waiting:
            return
        except _Refused as refused:
            self._end(index, cell.model_copy(update={"reason": str(refused)}))
            return
        if figures is not None:
            self._end(index, cell.model_copy(update={"figures": figures}))

    def _end(self, index: int, cell: SweepCell) -> None:
        if cell.reason is not None:
            self._progress.say(f"{cell.name}: not measured: {cell.reason}")
        self._cells[index] = cell
        self.report = self._save()

    def _figures(self, index: int, cell: SweepCell, repair: Repair) -> SweepFigures | None:
        """Those of an equal cell, or None while they are measured."""
        listed = ", ".join(map(str, cell.layers)) or "none"
        known = self._known(cell.key)
        if known is not None:
            self._progress.say(f"{cell.name}: layers {listed} with {repair} are measured already, reusing them")
            return known
        if cell.key in self._failed:
            raise _Refused(self._failed[cell.key])
        if cell.key not in self._waiting:
            self._progress.say(f"{cell.name}: layers {listed}")
            latency = self._request.latency
            task = cell_task(cell.name, self._inputs(), self._corpus.name, cell.layers, repair, latency=latency)
            self._submit(task, lambda outcome: self._take_figures(index, cell, outcome))
            self._waiting[cell.key] = []
        else:
            self._waiting[cell.key].append(index)
        return None

    def _take_figures(self, index: int, cell: SweepCell, outcome: Outcome) -> None:
        found = self._taken(cell.key, outcome)
        if found is not None:
            figures = SweepFigures.model_validate(found["figures"])
            timed, here = figures.latency, self._identity.machine
            if timed is None or timed.device == here:
                cell = cell.model_copy(update={"figures": figures})
            else:
                self._failed[cell.key] = f"was timed on {timed.device}, and not on {here} as the others"
        if cell.figures is None:
            cell = cell.model_copy(update={"reason": self._failed[cell.key]})
        self._end(index, cell)
        # Once more from the beginning: this time the figures, or why there are none, are known.
        for equal in self._waiting.pop(cell.key):
            self._begin(equal)

    def _known(self, key: str) -> SweepFigures | None:
        """Figures of an equal cell; without latency they are no use to a sweep that measures it."""
        for cell in (*self._cells.values(), *self._pool):
            if cell.key == key and cell.figures is not None and (cell.figures.latency or not self._request.latency):
                return cell.figures
        return None

    def _order(self, index: int) -> SweepOrder:
        """The order that a cell takes its layers from."""
        rank, repair, drop = self._asked[index]
        there = len(self._described.kept)
        if drop > there:
            raise _Refused(f"cannot drop {drop} attention sublayers: there are {there}")
        guarded = rank.kind == "guard"
        name = (str(rank), str(repair) if guarded else None)
        order = self._orders.get(name)
        if order is None or len(order.layers) < drop:
            self._search(index, name, repair if guarded else Repair(), there)
        assert order is not None
        if order.ruined_from is not None and drop >= order.ruined_from and not self._request.despite_failure:
            raise _Refused(f"{order.reason}; measure it all the same with --despite-failure")
        return order

    def _search(self, index: int, name: tuple[str, str | None], repair: Repair, there: int) -> NoReturn:
        """Have an order found, once for all its cells: a guarded search to the largest number serves all smaller."""
        search = " ".join(part for part in name if part is not None)
        if search in self._failed:
            raise _Refused(self._failed[search])
        if search not in self._waiting:
            count = max(drop for drop in self._request.drops if drop <= there)
            cache = self._work / f"guard-{str(repair).replace(':', '-')}.json"
            task = order_task(search, self._inputs(), self._corpus.name, name[0], count, repair, cache)
            self._submit(task, lambda outcome: self._take_order(name, outcome))
        self._waiting.setdefault(search, []).append(index)
        raise _Waiting

    def _take_order(self, name: tuple[str, str | None], outcome: Outcome) -> None:
        search = outcome.task.name
        found = self._taken(search, outcome)
        if found is not None:
            self._orders[name] = SweepOrder.model_validate(found["order"])
            self.report = self._save()
        for index in self._waiting.pop(search):
            self._begin(index)

    def _submit(self, task: Task, taker: Callable[[Outcome], None]) -> None:
        self._executor.submit(task)
        self._takers[task.name] = taker

    def _taken(self, key: str, outcome: Outcome) -> dict[str, Any] | None:
        """What a task found; None where it has a reason to have found nothing, which is kept under ``key``."""
        if outcome.lost:
            self._failed[key] = str(outcome.error)
            return None
        found: dict[str, Any] = outcome.result()
        self._base_ppl = found["base_ppl"]
        if "reason" in found:
            self._failed[key] = found["reason"]
            return None
        return found

    def _inputs(self) -> tuple[InputFile, ...]:
        """The graph's files and the tokens, which every task reads."""
        if not self._shared:
            tokens = save_tokens(self._work / TOKENS_NAME, self._windows, self._corpus)
            self._shared = (*graph_inputs(self._graph, "graph"), tokens)
        return self._shared

    @property
    def _work(self) -> Path:
        return self._request.out / "work"

    def _save(self) -> SweepReport:
        request, subject, cells = (
            self._request,
            self._request.subject,
            tuple(self._cells[index] for index in sorted(self._cells)),
        )
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
