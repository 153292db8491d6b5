"""Whether scores, or a plan that was made from them, belong to the checkpoint or graph that they are used on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.errors import RefusedError
from gatenorm_export.kinds import graph_tower
from gatenorm_export.records import ExportedGraph, LayerScores, ModelSpec, PrunedGraph, PrunePlan


@dataclass(frozen=True)
class _Origin:
    """What scores or a plan come from: query and key weights by tower, or an ONNX graph that was scored by itself."""

    subject: str
    words: str
    name: str
    n_layers: int
    digests: Mapping[str, str | None]
    graph_sha256: str | None

    @classmethod
    def of(cls, made: LayerScores | PrunePlan) -> _Origin:
        if isinstance(made, PrunePlan):
            digests = {made.tower: made.model_digest}
            said = ("the plan is", "the plan was made from", made.model_name, made.n_layers)
            return cls(*said, digests, made.graph_sha256)
        model, towers = made.model, made.towers
        said = ("the scores are", "the scores are of", model.name, len(made.of_tower(towers[0])))
        return cls(*said, {name: model.tower(name).query_key_digest for name in towers}, model.graph_sha256)

    @property
    def short(self) -> str:
        return ", ".join(dict.fromkeys((digest or "not scored")[:12] for digest in self.digests.values()))


def require_model(made: LayerScores | PrunePlan, model: ModelSpec, *, where: str) -> None:
    """Make sure that ``made`` comes from the query and key weights of ``model``; ``where`` is what needs it.

    Raises:
        RefusedError: they are those of another model.
    """
    origin = _Origin.of(made)
    there = {tower.name: tower.query_key_digest for tower in model.towers}
    if any(digest is None or there.get(tower) != digest for tower, digest in origin.digests.items()):
        raise RefusedError(
            f"{where}: holds the weights of {model.name} ({model.short_digest}), but {origin.words} {origin.name} "
            f"({origin.short}); score that model, and plan from its scores"
        )


def require_graph(
    made: LayerScores | PrunePlan,
    graph: Path,
    record: ExportedGraph | PrunedGraph | None,
    *,
    n_layers: int | None = None,
    hint: str = "",
) -> None:
    """Make sure that ``made`` comes from that very graph, or from the checkpoint that it was exported from.

    ``record`` is the graph's manifest; a graph without one does not say where it is from, and its ``n_layers`` are all
    that can be held against. ``hint`` is what may have made them another number.

    Raises:
        RefusedError: it is another graph, or one of another model, tower or number of layers.
    """
    origin = _Origin.of(made)
    if record is not None and origin.graph_sha256 is None:
        _require_tower(origin, graph, record.tower)
    if n_layers is not None and n_layers != origin.n_layers:
        raise RefusedError(
            f"{graph}: {origin.subject} for {origin.n_layers} attention layers, the graph has {n_layers}; score the "
            f"model that the graph was exported from, or the graph itself{hint}"
        )
    if origin.graph_sha256 is not None:
        if sha256_of(graph) != origin.graph_sha256:
            raise RefusedError(
                f"{graph}: is not the graph that {origin.words}, {origin.name} ({origin.graph_sha256[:12]}); "
                "score this one, and plan from its scores"
            )
    elif record is not None and record.model is not None:
        require_model(made, record.model, where=str(graph))


def _require_tower(origin: _Origin, graph: Path, tower: str) -> None:
    if tower in {graph_tower(asked) for asked in origin.digests}:
        return
    asked = " and ".join(one or "of a model with one" for one in origin.digests)
    raise RefusedError(
        f"{graph}: holds the tower {tower or 'of a model with one'}, but {origin.words} the tower {asked}; name the "
        "graph of that tower"
    )


def require_scores(plan: PrunePlan, scores: LayerScores) -> None:
    """Make sure that ``plan`` was made from scores of the same weights as ``scores``.

    Raises:
        RefusedError: it was not.
    """
    require_model(plan, scores.model, where="the scores")
