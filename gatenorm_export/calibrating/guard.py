"""Choose what goes by measuring it: in the order of the scores within a budget, or greedily."""

from __future__ import annotations

import dataclasses
import heapq
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from gatenorm_export.calibrating.corpus import Corpus
from gatenorm_export.calibrating.fitting import fit_each
from gatenorm_export.calibrating.metering import Cost, Measurements, Meter
from gatenorm_export.calibrating.stream import StreamModel
from gatenorm_export.errors import RefusedError
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import GuardReport, GuardStep, PlainCost, SparedLayer
from gatenorm_export.repairs import LayerRepair, Repair

Search = Literal["order", "greedy"]

DEFAULT_BUDGET = 1.05
"""Of ``order``: a single removal may multiply perplexity by this much."""
PPL_LIMIT, JUMP_LIMIT = 100.0, 2.0
"""The paper's failure signatures: perplexity beyond 100, or one removal that doubles it."""
FEW_WINDOWS = 3
"""The first look at every candidate is on few tokens; only those near the front are measured on all."""
FIT_EVERY = 4
"""The search's own stand-ins are fitted on every fourth window; the plan's are fitted on all when it is carried out."""


@dataclasses.dataclass(frozen=True)
class GuardRequest:
    """How to guard a plan. ``budget`` is the largest factor on perplexity that one more removal may cost."""

    search: Search = "greedy"
    budget: float | None = None
    candidates: int | None = None
    repair: Repair = dataclasses.field(default_factory=Repair)
    force: bool = False


def guard_layers(
    model: StreamModel,
    corpus: Corpus,
    ranked: Sequence[int],
    count: int,
    request: GuardRequest,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[int, ...], GuardReport]:
    """Choose ``count`` of the layers ``ranked`` (lowest score first), each measured on text that nothing is fitted on.

    ``order`` takes them as they come and spares a layer whose removal costs more than the budget. ``greedy`` takes at
    each step the one that costs least in KL(base || pruned); a cost that was measured for an earlier step is trusted
    as a bound until it comes to the front (lazy greedy, Minoux 1978), so that most are measured once. While searching,
    each candidate is repaired as if it went alone.

    Raises:
        RefusedError: fewer layers than asked for fit the budget, or a failure signature shows and ``force`` is not set.
    """
    progress = progress or Quiet()
    started = time.monotonic()
    candidates = tuple(ranked[: request.candidates] if request.candidates is not None else ranked)
    if count > len(candidates):
        raise RefusedError(f"cannot choose {count} layers out of {len(candidates)} candidates; raise --candidates")
    budget = request.budget if request.budget is not None or request.search == "greedy" else DEFAULT_BUDGET
    decides = [str(model.graph.stat().st_size), str(model.graph.resolve()), corpus.sha256, str(request.repair)]
    search = _Search(model, corpus, candidates, request, budget, Measurements(cache, *decides), progress)
    dropped = search.greedy(count) if request.search == "greedy" else search.in_order(count)
    spared, plain = search.spared(dropped), search.plain(ranked[:count])
    report = GuardReport(
        search=request.search,
        repair=str(request.repair),
        budget=budget,
        candidates=candidates,
        text=corpus.name,
        text_sha256=corpus.sha256,
        n_tokens=int(corpus.measured.size),
        base_ppl=search.base_ppl,
        steps=tuple(search.steps),
        spared=spared,
        n_measured=search.n_measured,
        seconds=time.monotonic() - started,
        sentences=search.sentences(dropped, spared, plain),
        plain=plain,
        forced=search.forced,
    )
    search.measurements.forget()
    return tuple(sorted(dropped)), report


def failure_signature(base_ppl: float, ppl: float, factor: float) -> str | None:
    """The sign of a ruined model that a removal shows, in words; ``factor`` is the removal's own on perplexity."""
    if ppl > PPL_LIMIT >= base_ppl:
        return f"perplexity {ppl:.0f} is beyond {PPL_LIMIT:.0f} (unpruned {base_ppl:.1f})"
    return f"it multiplies perplexity by {factor:.1f}" if factor > JUMP_LIMIT else None


class _Search:
    """The state of one search: the plan so far and what was measured."""

    def __init__(
        self,
        model: StreamModel,
        corpus: Corpus,
        candidates: tuple[int, ...],
        request: GuardRequest,
        budget: float | None,
        measurements: Measurements,
        progress: Progress,
    ) -> None:
        self.measurements = measurements
        self.steps: list[GuardStep] = []
        self.n_measured = 0
        self.forced = False
        self._request, self._budget, self._progress = request, budget, progress
        self._candidates = candidates
        self._repairs: Mapping[int, LayerRepair] = {}
        if not request.repair.nothing:
            fitted = corpus.fitted[::FIT_EVERY] if len(corpus.fitted) >= 4 * FIT_EVERY else corpus.fitted
            self._repairs = fit_each(model, fitted, candidates, request.repair, progress=progress)
        with progress.task("measure the unpruned model"):
            self._meter = Meter(model, corpus.measured)
        self._meter.adopt(frozenset(), self._repairs)
        self.base_ppl = self._meter.base_ppl
        self._plan: list[int] = []
        self._current = Cost(0.0, self.base_ppl)
        self._seen: dict[int, float] = {}
        """The factor on perplexity of each candidate when it was last measured on all windows."""
        self._over_budget: set[int] = set()

    def in_order(self, count: int) -> list[int]:
        """Candidates as they come; one that costs more than the budget is spared."""
        with self._progress.task("measure removals in the order of the scores", total=count) as bar:
            for layer in self._candidates:
                if len(self._plan) == count:
                    break
                cost = self._measure(layer)
                if self._budget is not None and cost.ppl / self._current.ppl > self._budget:
                    self._over_budget.add(layer)
                    continue
                self._accept(layer, cost)
                bar.advance()
        if len(self._plan) < count:
            self._refuse_budget(count)
        return self._plan

    def greedy(self, count: int) -> list[int]:
        """At each step the candidate that adds least KL."""
        heap: list[tuple[float, int, int]] = []
        if count:
            with self._progress.task("look at each candidate", total=len(self._candidates)) as bar:
                for layer in self._candidates:
                    heap.append((self._measure(layer, windows=FEW_WINDOWS).kl_nats, layer, -1))
                    bar.advance()
        heapq.heapify(heap)
        with self._progress.task("search greedily", total=count) as bar:
            while len(self._plan) < count:
                _, layer, measured_at = heapq.heappop(heap)
                cost = self._measure(layer)
                if measured_at != len(self._plan):
                    heapq.heappush(heap, (cost.kl_nats - self._current.kl_nats, layer, len(self._plan)))
                    continue
                if self._budget is not None and cost.ppl / self._current.ppl > self._budget:
                    self._over_budget.add(layer)
                    if not heap:
                        self._refuse_budget(count)
                    continue
                self._accept(layer, cost)
                bar.advance()
        return self._plan

    def _measure(self, layer: int, windows: int | None = None) -> Cost:
        name = f"{','.join(map(str, sorted(self._plan)))}+{layer}/{windows or 'all'}"
        cost = self.measurements.get(name)
        if cost is None:
            cost = self.measurements.put(name, self._meter.cost(layer, windows=windows))
            self.n_measured += 1
        if windows is None:
            self._seen[layer] = cost.ppl / self._current.ppl
        elif layer not in self._seen:
            self._seen[layer] = math.nan
        return cost

    def _accept(self, layer: int, cost: Cost) -> None:
        factor = cost.ppl / self._current.ppl
        signature = failure_signature(self.base_ppl, cost.ppl, factor)
        if signature is not None:
            if not self._request.force:
                done = ", ".join(map(str, sorted(self._plan))) or "none"
                raise RefusedError(
                    f"removal {len(self._plan) + 1}, layer {layer}, ruins the model: {signature}; removed before it: "
                    f"{done}. Ask for fewer layers, for a --repair, or for it all the same with --despite-failure"
                )
            self.forced = True
        self._plan.append(layer)
        self._current = cost
        self.steps.append(
            GuardStep(layer=layer, kl_nats=cost.kl_nats, ppl=cost.ppl, ppl_ratio=cost.ppl / self.base_ppl, cost=factor)
        )
        self._meter.adopt(frozenset(self._plan), self._repairs)

    def _refuse_budget(self, count: int) -> None:
        raise RefusedError(
            f"only {len(self._plan)} of {count} layers can go within the budget of {self._budget:g} on perplexity for "
            f"each: {', '.join(map(str, sorted(self._plan))) or 'none'}; raise --budget, repair better, ask for fewer"
        )

    def spared(self, dropped: Sequence[int]) -> tuple[SparedLayer, ...]:
        """The measured candidates that stay."""
        return tuple(
            SparedLayer(layer=layer, ppl_ratio=self._factor(layer), protected=protected, reason=reason)
            for layer in sorted(self._seen)
            if layer not in dropped
            for protected, reason in [self._reason(layer, dropped)]
        )

    def _factor(self, layer: int) -> float:
        """The last factor that was measured for a layer, on few windows where it was never near the front."""
        factor = self._seen[layer]
        if math.isnan(factor):
            few = self.measurements.get(f"+{layer}/{FEW_WINDOWS}")
            assert few is not None
            factor = few.ppl / self._meter.base_ppl_of(FEW_WINDOWS)
        return factor

    def _reason(self, layer: int, dropped: Sequence[int]) -> tuple[bool, str]:
        factor, rank = self._factor(layer), self._candidates.index(layer) + 1
        if layer in self._over_budget:
            return True, f"its removal multiplies perplexity by {factor:.3f}, more than the budget of {self._budget:g}"
        highest = max((self._candidates.index(other) + 1 for other in dropped), default=0)
        if rank < highest:
            return True, f"score {rank} from below, yet its removal multiplies perplexity by {factor:.3f}"
        return False, f"its removal multiplies perplexity by {factor:.3f}, and {len(dropped)} others cost less"

    def plain(self, lowest: Sequence[int]) -> PlainCost:
        """Plain Gate-Norm on the same text: the ``lowest`` scores removed, unrepaired and repaired."""
        unrepaired = self._set_cost("unrepaired", lowest, {})
        repaired = self._set_cost("repaired", lowest, self._repairs) if self._repairs else None
        return PlainCost(
            layers=tuple(sorted(lowest)),
            ppl_ratio=unrepaired.ppl / self.base_ppl,
            repaired_ppl_ratio=repaired.ppl / self.base_ppl if repaired is not None else None,
        )

    def _set_cost(self, kind: str, layers: Sequence[int], repairs: Mapping[int, LayerRepair]) -> Cost:
        # The search's last step measured its own plan.
        if set(layers) == set(self._plan) and bool(repairs) == bool(self._repairs):
            return self._current
        name = f"{kind} {','.join(map(str, sorted(layers)))}"
        cost = self.measurements.get(name)
        if cost is None:
            with self._progress.task(f"measure plain Gate-Norm, {kind}"):
                self._meter.adopt(frozenset(layers), repairs)
                cost = self.measurements.put(name, self._meter.cost(None))
        return cost

    def sentences(self, dropped: Sequence[int], spared: Sequence[SparedLayer], plain: PlainCost) -> tuple[str, ...]:
        """The outcome in plain words."""
        lines = []
        if self.steps:
            last = self.steps[-1]
            lines.append(
                f"Removing {len(dropped)} layers multiplies perplexity by {last.ppl_ratio:.3f} on text that nothing "
                f"was fitted on (repair while searching: {self._request.repair})."
            )
        if plain.layers == tuple(sorted(dropped)):
            lines.append("They are those with the lowest scores: plain Gate-Norm chooses the same.")
        elif plain.layers:
            repaired = (
                f", and by {plain.repaired_ppl_ratio:.3f} with the same repair"
                if plain.repaired_ppl_ratio is not None
                else ""
            )
            lines.append(
                f"Plain Gate-Norm would remove {', '.join(map(str, plain.layers))}, which multiplies perplexity by "
                f"{plain.ppl_ratio:.3f}{repaired}."
            )
        protected = [layer for layer in spared if layer.protected]
        if protected:
            listed = "; ".join(f"layer {entry.layer}: {entry.reason}" for entry in protected)
            lines.append(f"Protected although the scores offered them: {listed}.")
        worst = sorted(spared, key=lambda entry: -entry.ppl_ratio)[:3]
        if worst:
            listed = ", ".join(f"{entry.layer} (x {entry.ppl_ratio:.2f})" for entry in worst)
            lines.append(f"The layers that this model can least do without: {listed}.")
        return tuple(lines)
