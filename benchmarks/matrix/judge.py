"""Judge one cell: prune an exported graph every way the matrix asks for, and compare with an independent reference.

The reference is the same exporter's graph of the same model with its attention exits zeroed, so it shares nothing with
``graph_passes``, and no exporter is blamed for what it computes differently from the framework.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.matrix.answers import Answer, worst_error
from benchmarks.matrix.cache_names import CannotRun
from benchmarks.matrix.cells import Exporter, Precision
from benchmarks.matrix.models import N_LAYERS, Family
from benchmarks.matrix.producing import EnvironmentMissing, ExportFailed, Request, prepare, produce
from benchmarks.matrix.retyping import in_float32, with_float_activations
from benchmarks.matrix.running import Runner, Script, first_line

Outcome = Literal[
    "faithful", "partly refused", "refused", "WRONG", "crashed", "blunt", "not run", "not exported", "no environment"
]

# Largest difference over the range of the reference's answers. fp32 is DESIGN.md's faithfulness. In 4 and 8 bits and in
# half precision the session runs without optimisations, so that every operator rounds by itself on both sides: x + 0 is
# x, and 8 bits need no tolerance of their own. For operators that the CPU lacks in half precision the session inserts
# casts, and drops some again next to an Add that one side has and the other has not: a rounding (2**-11, 4.9e-4) more
# or less in a few places; 1.6e-3 was the largest of 41 families. A wrong layer is off by more than 0.05 everywhere,
# which the judge measures: a cell where that is less than ten tolerances is "blunt", not faithful.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "bf16": 1e-4, "fp16": 4e-3, "int8": 1e-4, "int4": 1e-4}
_SHARPNESS = 10.0

ALL = tuple(range(N_LAYERS))
SINGLES: tuple[tuple[int, ...], ...] = tuple((layer,) for layer in ALL)
ENDS = (0, N_LAYERS - 1)
SUBSETS: tuple[tuple[int, ...], ...] = (*SINGLES, (1, 2), ENDS, ALL)
# For the tests, where every second counts: what went wrong at all, went wrong at an end.
FEW_SUBSETS: tuple[tuple[int, ...], ...] = (*SINGLES[:1], ENDS, ALL)


@dataclass(frozen=True)
class Trial:
    """One way of pruning: what was removed and how, and how far the result is from the reference."""

    layers: tuple[int, ...]
    how: str
    error: float | None = None
    refusal: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome of one graph of a cell."""

    exporter: str
    family: str
    graph: str
    outcome: Outcome
    reason: str = ""
    tolerance: float = 0.0
    worst: float = 0.0
    # How far the nearest wrong surgery (no layer removed, or a neighbour) is from the reference.
    nearest_mistake: float = 0.0
    seconds: float = 0.0
    trials: tuple[Trial, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Verdict:
        """The verdict that :meth:`to_json` wrote."""
        trials = (Trial(**(trial | {"layers": tuple(trial["layers"])})) for trial in record["trials"])
        return cls(**(record | {"trials": tuple(trials)}))


def judge_cell(
    cache: Path,
    made_by: Exporter,
    row: Family,
    *,
    by_value: bool = True,
    subsets: tuple[tuple[int, ...], ...] = SUBSETS,
) -> list[Verdict]:
    """One verdict for each graph of the cell; ``subsets`` must have one layer alone, and both ends."""
    start = time.perf_counter()
    request = Request(cache, made_by, row, by_value=by_value)
    try:
        graphs = produce(request)
        prepare([replace(request, silenced=layers) for layers in subsets])
    except EnvironmentMissing as error:
        return [Verdict(made_by.name, row.name, "", "no environment", str(error))]
    except ExportFailed as error:
        return [Verdict(made_by.name, row.name, "", "not exported", str(error))]
    verdicts = []
    for name, graph in graphs.items():

        def reference(layers: tuple[int, ...], name: str = name) -> Path:
            return produce(replace(request, silenced=layers))[name]

        judged = _Judge(graph, made_by, row, reference, subsets).verdict()
        seconds = round(time.perf_counter() - start, 2)
        verdicts.append(Verdict(made_by.name, row.name, name, **judged, seconds=seconds))
        start = time.perf_counter()
    return verdicts


@dataclass
class _Judge:
    graph: Path
    made_by: Exporter
    row: Family
    reference: Callable[[tuple[int, ...]], Path]
    subsets: tuple[tuple[int, ...], ...]
    references: dict[tuple[int, ...], list[Answer]] = field(default_factory=dict)

    @functools.cached_property
    def proto(self) -> Any:
        """The graph, read once; every trial makes a model of its own from it."""
        import onnx

        return onnx.load(self.graph)

    def verdict(self) -> dict[str, Any]:
        tolerance = TOLERANCES[self.made_by.precision]
        try:
            base = self._load(self.graph)
            script = self._script(base)
            for layers in self.subsets:
                self.references[layers] = self._load(self.reference(layers)).run(script)
        except (CannotRun, ExportFailed) as error:
            return {"outcome": "not run", "reason": str(error)}
        missing = self._missing()
        if missing:
            return {"outcome": "refused", "reason": missing}
        trials = self._trials(base.cached_layers, script)
        nearest = min(
            worst_error(expected, mistake)
            for layers, expected in self.references.items()
            for others, mistake in self.references.items()
            if layers != others and layers
        )
        errors = [trial.error for trial in trials if trial.error is not None]
        outcome, reason = _outcome(trials, tolerance)
        if nearest < _SHARPNESS * tolerance:
            outcome, reason = "blunt", f"a wrong layer differs by {nearest:.1e} only"
        return {
            "outcome": outcome,
            "reason": reason,
            "tolerance": tolerance,
            "worst": max(errors, default=0.0),
            "nearest_mistake": nearest,
            "trials": trials,
        }

    def _script(self, base: Runner) -> Script:
        """The first script that the base graph runs.

        Some fused graphs run a batch of one only, and some one new token at a time after the prompt.
        """
        script = base.script(left_padding=self.made_by.left_padding, head_size=self.row.head_size)
        last = CannotRun("no script was tried")
        for attempt in (script, replace(script, batch=1), replace(script, steps=(script.steps[0], 1, 1))):
            try:
                self.references[()] = base.run(attempt)
                return attempt
            except CannotRun as error:
                last = error if attempt is script else last
        raise last

    def _missing(self) -> str:
        """Why not every attention sublayer is found, empty when all are."""
        import onnx_ir as ir

        from graph_passes import find_attention

        try:
            found = find_attention(ir.from_proto(self.proto))
        except ValueError as error:
            return str(error)
        if found.layers == ALL:
            return ""
        unmatched = "; ".join(str(reason) for reason in found.unmatched) or "nothing else looks like attention"
        return f"found layers {found.layers} of {ALL}: {unmatched}"

    def _trials(self, cached: tuple[int, ...], script: Script) -> tuple[Trial, ...]:
        ways: list[tuple[tuple[tuple[int, ...], ...], Literal["keep", "dense"]]]
        ways = [((layers,), "keep") for layers in self.subsets]
        if cached:
            ways += [((layers,), "dense") for layers in self.subsets if len(layers) == 2]
        ways.append(((ENDS[:1], ENDS[1:]), "keep"))
        return tuple(self._trial(steps, kv_names, bool(cached), script) for steps, kv_names in ways)

    def _trial(
        self, steps: tuple[tuple[int, ...], ...], kv_names: Literal["keep", "dense"], has_cache: bool, script: Script
    ) -> Trial:
        """Prune in one or more steps, through a file's bytes each, and run the result."""
        import onnx_ir as ir

        from graph_passes import SurgeryRefused, remove_attention

        layers = tuple(sorted(layer for step in steps for layer in step))
        how = kv_names if len(steps) == 1 else f"{kv_names}, in {len(steps)} steps"
        try:
            model = ir.from_proto(self.proto)
            for number, step in enumerate(steps):
                model = model if number == 0 else ir.from_proto(ir.to_proto(model))
                remove_attention(model, step, kv_names=kv_names)
            data = ir.to_proto(model).SerializeToString()
        except SurgeryRefused as error:
            return Trial(layers, how, refusal=str(error))
        except Exception as error:
            # Any other exception is a defect of the surgery, which the matrix must count and not stop at.
            return Trial(layers, how, failure=first_line(error))
        kept = tuple(layer for layer in ALL if layer not in layers)
        try:
            runner = self._load(data, kept if kv_names == "dense" else None)
            if has_cache and runner.cached_layers != kept:
                return Trial(layers, how, failure=f"caches of layers {runner.cached_layers}, expected {kept}")
            return Trial(layers, how, error=worst_error(runner.run(script), self.references[layers]))
        except CannotRun as error:
            return Trial(layers, how, failure=str(error))

    def _load(self, graph: Path | bytes, numbers: tuple[int, ...] | None = None) -> Runner:
        # The surgery is done on the graph as it is, the comparison on one that rounds nowhere in between.
        if self.made_by.precision == "bf16":
            graph = in_float32(graph)
        elif self.made_by.precision == "int4":
            graph = with_float_activations(graph)
        return Runner.load(graph, optimise=self.made_by.precision in ("fp32", "bf16"), numbers=numbers)


def _outcome(trials: tuple[Trial, ...], tolerance: float) -> tuple[Outcome, str]:
    """The worst that happened, with its first reason."""
    wrong = [trial for trial in trials if trial.error is not None and not trial.error <= tolerance]
    crashed = [trial for trial in trials if trial.failure is not None]
    refused = [trial for trial in trials if trial.refusal is not None]
    if wrong:
        worst = max(wrong, key=lambda trial: trial.error or 0.0)
        return "WRONG", f"without {worst.layers} ({worst.how}): {worst.error:.1e} of the range"
    if crashed:
        return "crashed", f"without {crashed[0].layers} ({crashed[0].how}): {crashed[0].failure}"
    if refused:
        first = refused[0]
        outcome: Outcome = "refused" if len(refused) == len(trials) else "partly refused"
        return outcome, f"{len(refused)} of {len(trials)}, such as {first.layers} ({first.how}): {first.refusal}"
    return "faithful", ""
