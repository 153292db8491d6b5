"""The proof of one pruning, put together: faithfulness, quality, latency, sizes, limits, verdict."""

from __future__ import annotations

import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from gatenorm_export.comparing.deciding import figures_key
from gatenorm_export.comparing.failures import runtime_failures
from gatenorm_export.comparing.faithfulness import check_faithfulness
from gatenorm_export.comparing.latency import measure_latency
from gatenorm_export.comparing.prediction import with_roofline
from gatenorm_export.comparing.request import ComparisonRequest
from gatenorm_export.comparing.thresholds import check_limits
from gatenorm_export.comparing.verdict import verdict
from gatenorm_export.errors import GateNormError, RefusedError
from gatenorm_export.graph_pair import GraphPair, read_graph_pair
from gatenorm_export.graphs import data_files
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.kinds import ModelKind, kind_of, kind_of_graph
from gatenorm_export.processor import device_name
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import (
    ComparisonReport,
    EngineAccuracy,
    Faithfulness,
    GraphFacts,
    Latency,
    ModelSpec,
    Sizes,
)
from gatenorm_export.records.comparison import AnyQuality
from gatenorm_export.repairs import repairs_of

if TYPE_CHECKING:
    from gatenorm_export.comparing.engine_pair import EnginePair

_LATENCY = TypeAdapter(Latency)

REPAIR_SEQUENCES = (256,)
"""One length is enough for a repair: what it computes does not depend on how much is in the cache."""


def compare_graphs(
    base: Path,
    pruned: Path,
    request: ComparisonRequest,
    *,
    model_name: str | None = None,
    engines: EnginePair | None = None,
    kept: Path | None = None,
    progress: Progress | None = None,
) -> ComparisonReport:
    """Compare a pruned graph with its base.

    The checkpoint that faithfulness is judged against is ``model_name``, or the one that the graphs' manifests name.
    When neither can be had, faithfulness is reported as not run, with the reason. ``engines`` are held against the
    graphs; where there is no GPU to run them on, the report says so.

    ``kept`` is a file for the stages that are measured, from which the same call goes on where it was interrupted;
    whoever calls forgets it once the result is written.

    Raises:
        InputError: a graph, the text or the checkpoint is damaged or missing.
        RefusedError: the graphs are no pair: swapped, or of different parents; or the engines are not theirs.
        OutputError: ``kept`` cannot be written.
    """
    progress = progress or Quiet()
    with progress.task("check the pair"):
        pair = read_graph_pair(base, pruned)
        if engines is not None:
            from gatenorm_export.comparing.engine_pair import check_built_from

            check_built_from(engines, pair)
    spec, reason = _checkpoint(pair.model, model_name, progress)
    kind = _kind(pair, spec)
    request.check(kind)
    work = _kept(kept, pair, spec, request, engines, progress)
    faithfulness = _faithfulness(pair, spec, reason, kind, work, progress)
    latency: Latency | None = None
    with runtime_failures(f"{base} or {pruned}"):
        judge, measure = kind.kind.function("quality"), kind.kind.function("latency")
        quality: AnyQuality = work.once(
            "quality",
            TypeAdapter(AnyQuality),
            lambda: judge(base, pruned, request.inputs, spec, progress=progress),
        )
        if request.latency:
            timed = work.once("latency", _LATENCY, lambda: measure(base, pruned, spec, progress=progress))
            latency = work.once("roofline", _LATENCY, lambda: with_roofline(base, pruned, timed, progress=progress))
    repair_latency = None
    if request.latency and pair.repair is not None:
        repair_latency = work.once("latency of the repair", _LATENCY, lambda: _repair_latency(pair, progress))
    tower, dropped, n_layers = pair.judged
    thresholds = check_limits(request.limits, quality, latency)
    accuracy, engine_latency, no_engine_latency = _engines(engines, pair, request, work, progress)
    sizes = {record.parent_sha256: record.bytes for record in engines.records} if engines is not None else {}
    return ComparisonReport(
        convention=pair.convention,
        base=str(base),
        pruned=str(pruned),
        base_sha256=pair.base_sha256,
        pruned_sha256=pair.pruned_sha256,
        tower=tower,
        dropped=dropped,
        n_layers=n_layers,
        faithfulness=faithfulness,
        quality=quality,
        latency=latency,
        repair_latency=repair_latency,
        engine_accuracy=accuracy,
        engine_latency=engine_latency,
        engine_latency_reason=no_engine_latency,
        base_sizes=_sizes(base, pair.base_facts, sizes.get(pair.base_sha256)),
        pruned_sizes=_sizes(pruned, pair.pruned_facts, sizes.get(pair.pruned_sha256)),
        thresholds=thresholds,
        verdict=verdict(
            faithfulness,
            quality,
            latency,
            thresholds,
            pair.base_facts,
            pair.pruned_facts,
            repair_latency,
            engines=accuracy,
            engine_latency=engine_latency,
        ),
        passed=faithfulness.passed is not False
        and all(engine.passed is not False for engine in accuracy)
        and all(threshold.passed for threshold in thresholds),
        device=device_name(),
        command=request.command,
    )


def _kept(
    path: Path | None,
    pair: GraphPair,
    spec: ModelSpec | None,
    request: ComparisonRequest,
    engines: EnginePair | None,
    progress: Progress,
) -> KeptWork:
    """The stages that were measured before."""
    if path is None:
        return KeptWork(None)
    with progress.task("digest the graphs"):
        work = KeptWork(path, figures_key(pair, spec, request, engines))
    if work.names:
        progress.say(f"{', '.join(work.names)}: measured before; going on")
    return work


def _checkpoint(recorded: ModelSpec | None, asked: str | None, progress: Progress) -> tuple[ModelSpec | None, str]:
    """The checkpoint to judge against, or why there is none. One that is asked for by name must be there."""
    from gatenorm_export.sources import resolve_model

    if asked is not None:
        spec = resolve_model(asked, progress=progress)
        if recorded is not None and recorded.digest != spec.digest:
            raise RefusedError(
                f"--model {asked} ({spec.digest[:12]}) is not the checkpoint that the graphs came from "
                f"({recorded.name}, {recorded.digest[:12]})"
            )
        return spec, ""
    if recorded is None:
        return None, "the graphs do not say which checkpoint they came from; name it with --model"
    try:
        spec = resolve_model(recorded.path, progress=progress)
    except GateNormError as error:
        return None, f"the checkpoint that the graphs came from cannot be had ({error}); name it with --model"
    if spec.digest != recorded.digest:
        return None, f"the checkpoint at {recorded.path} has changed since the export; name the right one with --model"
    return spec, ""


def _kind(pair: GraphPair, spec: ModelSpec | None) -> ModelKind:
    """What the graphs are, by their checkpoint or else by what they take and give."""
    return kind_of(spec, pair.tower) if spec is not None else kind_of_graph(pair.pruned)


def _faithfulness(
    pair: GraphPair, spec: ModelSpec | None, reason: str, kind: ModelKind, work: KeptWork, progress: Progress
) -> Faithfulness:
    if spec is None:
        return Faithfulness(passed=None, reason=f"not run: {reason}", reference="none")

    def check() -> Faithfulness:
        repairs = repairs_of(pair.pruned, pair.repair) if pair.repair is not None else None
        return check_faithfulness(
            pair.pruned, spec, pair.dropped, repairs=repairs, tower=kind.tower, cross=pair.cross, progress=progress
        )

    result = work.once("faithfulness", TypeAdapter(Faithfulness), check)
    # The framework model is as large as both graphs together; it must be gone before they are loaded.
    gc.collect()
    return result


def _engines(
    engines: EnginePair | None, pair: GraphPair, request: ComparisonRequest, work: KeptWork, progress: Progress
) -> tuple[tuple[EngineAccuracy, ...], Latency | None, str]:
    """Whether engines are right, and how fast they are, or why that is not known."""
    if engines is None:
        return (), None, ""
    from gatenorm_export.comparing.engine_latency import measure_engines
    from gatenorm_export.comparing.engine_pair import engine_accuracies

    accuracy = work.once(
        "accuracy of the engines",
        TypeAdapter(tuple[EngineAccuracy, ...]),
        lambda: engine_accuracies(engines, pair, progress=progress),
    )
    if not request.latency:
        return accuracy, None, "left out on request (--no-latency)"
    # How fast a wrong engine is means nothing.
    if any(entry.passed is False for entry in accuracy):
        return accuracy, None, "not measured: an engine is wrong"
    return accuracy, *work.once(
        "latency of the engines",
        TypeAdapter(tuple[Latency | None, str]),
        lambda: measure_engines(engines, pair, progress=progress),
    )


def _repair_latency(pair: GraphPair, progress: Progress) -> Latency:
    """What a repair costs by the clock: the same layers removed and not repaired, against the repaired graph."""
    with TemporaryDirectory(prefix="gatenorm.") as folder:
        # Not model.onnx: beside a file of another name no tokenizer is written, which nobody needs here.
        bare = Path(folder) / "unrepaired.onnx"
        prune_graph(pair.base, bare, layers=pair.dropped, progress=progress)
        return measure_latency(bare, pair.pruned, sequences=REPAIR_SEQUENCES, progress=progress)


def _sizes(graph: Path, facts: GraphFacts, engine_bytes: int | None) -> Sizes:
    # A shared data file counts whole: that is what a machine must hold to run the graph.
    onnx_bytes = graph.stat().st_size + sum(path.stat().st_size for path in data_files(graph))
    return Sizes(facts=facts, onnx_bytes=onnx_bytes, engine_bytes=engine_bytes)
