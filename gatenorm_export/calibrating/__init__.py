"""What data can do for a plan: choose by measuring, and fit what takes the place of removed attention.

Everything here works on an ONNX graph, a tokenizer and a few pages of text.
"""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.calibrating.corpus import Corpus, CorpusRequest, load_corpus
from gatenorm_export.calibrating.fitting import fit_each, fit_repairs
from gatenorm_export.calibrating.guard import GuardRequest, guard_layers
from gatenorm_export.calibrating.stream import StreamModel
from gatenorm_export.errors import RefusedError, UsageError
from gatenorm_export.graphs import graph_manifest
from gatenorm_export.planning import DropRequest, plan_of, rank_layers
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.provenance import require_graph
from gatenorm_export.records import LayerScores, PrunePlan
from gatenorm_export.repairs import Repair, Repaired

CACHE_NAME = ".guard-measurements.json"


def guarded_plan(
    scores: LayerScores,
    graph: Path,
    drop: DropRequest,
    request: GuardRequest,
    corpus: CorpusRequest,
    *,
    scores_sha256: str,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> PrunePlan:
    """Choose the layers by what their removal costs on text, measured on ``graph``.

    ``cache`` is a file that measurements are kept in, so that an interrupted search resumes.

    Raises:
        UsageError: the layers are listed already.
        InputError: the graph, its tokenizer or the text is missing or damaged.
        RefusedError: the graph is of another model or cannot be measured; nothing fits the budget; the plan fails.
    """
    progress = progress or Quiet()
    if drop.layers is not None:
        raise UsageError("--guard chooses the layers; give --drop or --ratio instead of --layers")
    ranking = rank_layers(scores, drop, ordered=True)
    record = graph_manifest(graph, digest_data=False)
    with progress.task("cut the graph into layers"):
        model = StreamModel(graph)
    require_graph(scores, graph, record, n_layers=model.n_layers)
    windows = load_corpus(corpus, graph.parent, scores.model)
    ranked = [layer for layer in ranking.layers if layer in model.blocks]
    chosen, report = guard_layers(model, windows, ranked, ranking.count, request, cache=cache, progress=progress)
    searched = "greedily" if request.search == "greedy" else "in the order of the scores"
    policy = f"{ranking.count} layers, chosen {searched} by what they cost on text"
    return plan_of(scores, drop, chosen, policy, scores_sha256=scores_sha256, guard=report)


def fit_plan(
    graph: Path,
    drop: tuple[int, ...],
    repair: Repair,
    corpus: CorpusRequest,
    *,
    progress: Progress | None = None,
) -> Repaired | None:
    """Fit ``repair`` for the layers of a plan, on all windows of the text; None where there is nothing to repair.

    Raises:
        InputError: the graph, its tokenizer or the text is missing or damaged.
        RefusedError: the graph cannot be cut into layers, a layer does not exist or cannot be repaired in that way.
    """
    if repair.nothing or not drop:
        return None
    progress = progress or Quiet()
    record = graph_manifest(graph, digest_data=False)
    with progress.task("cut the graph into layers"):
        model = StreamModel(graph)
    missing = [layer for layer in drop if layer not in model.blocks]
    if missing:
        raise RefusedError(f"{graph}: layer {missing[0]} is not there to repair; it has {_listed(model.layers)}")
    windows = load_corpus(corpus, graph.parent, record.model if record is not None else None)
    fitted = fit_repairs(model, windows.fitted, drop, repair, progress=progress)
    return Repaired(repair, fitted, windows.name, windows.sha256, int(windows.fitted.size))


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))


__all__ = [
    "CACHE_NAME",
    "Corpus",
    "CorpusRequest",
    "GuardRequest",
    "StreamModel",
    "fit_each",
    "fit_plan",
    "fit_repairs",
    "guard_layers",
    "guarded_plan",
    "load_corpus",
]
