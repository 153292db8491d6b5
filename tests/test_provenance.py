"""Scores and plans are used on the checkpoint or graph that they come from, and on no other, by every stage alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gatenorm_export import calibrating
from gatenorm_export.artifacts import sha256_of
from gatenorm_export.calibrating import CorpusRequest, GuardRequest, guarded_plan
from gatenorm_export.errors import RefusedError
from gatenorm_export.graphs import graph_manifest
from gatenorm_export.planning import DropRequest, make_plan
from gatenorm_export.provenance import require_graph, require_model, require_scores
from gatenorm_export.pruning import prune_graph
from gatenorm_export.scoring import score_model
from gatenorm_export.sources import resolve_model
from gatenorm_export.sweeping.prepare import prepare


@pytest.fixture
def scored(exported, tmp_path: Path):
    """A graph in a folder of its own, its checkpoint, and the scores of both."""
    spec, graph, _ = exported("llama-gqa")
    folder = Path(shutil.copytree(graph.parent, tmp_path / "base"))
    own = folder / graph.name
    return spec, own, score_model(spec), score_model(resolve_model(str(own), whole=False))


def test_scores_of_the_graph_or_its_checkpoint_serve_every_stage(scored, tmp_path: Path) -> None:
    _, graph, of_checkpoint, of_graph = scored
    for number, scores in enumerate((of_checkpoint, of_graph)):
        require_graph(scores, graph, graph_manifest(graph), n_layers=4)
        file = tmp_path / f"scores-{number}.json"
        scores.save(file)
        subject = prepare(str(graph), tmp_path / "out", scores=file, needs_scores=True)
        assert subject.scores == scores
        plan = make_plan(scores, DropRequest(drop=1), scores_sha256=sha256_of(file))
        require_scores(plan, scores)
        assert prune_graph(graph, tmp_path / f"pruned-{number}", plan=plan).dropped == plan.drop


def test_a_guard_takes_scores_of_the_graph_itself(scored, exported, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        """The scores were taken: the text comes next."""

    def reached(*arguments: object) -> None:
        raise Reached

    monkeypatch.setattr(calibrating, "load_corpus", reached)
    _, graph, of_checkpoint, of_graph = scored
    of_other = score_model(exported("llama-mha")[0])
    for scores, error in ((of_graph, Reached), (of_checkpoint, Reached), (of_other, RefusedError)):
        with pytest.raises(error):
            guarded_plan(scores, graph, DropRequest(drop=1), GuardRequest(), CorpusRequest(), scores_sha256="")


def test_another_graph_or_checkpoint_is_refused_in_the_same_words(scored, exported, tmp_path: Path) -> None:
    spec, graph, of_checkpoint, of_graph = scored
    other_spec, other, _ = exported("llama-mha")
    of_other = score_model(other_spec)
    plans = [make_plan(scores, DropRequest(drop=1), scores_sha256="") for scores in (of_other, of_graph)]
    with pytest.raises(RefusedError, match=r"holds the weights of .*, but the scores are of"):
        require_graph(of_other, graph, graph_manifest(graph))
    with pytest.raises(RefusedError, match=r"holds the weights of .*, but the plan was made from"):
        require_graph(plans[0], graph, graph_manifest(graph))
    with pytest.raises(RefusedError, match="is not the graph that the scores are of"):
        require_graph(of_graph, other, graph_manifest(other))
    with pytest.raises(RefusedError, match="is not the graph that the plan was made from"):
        require_graph(plans[1], other, graph_manifest(other))
    with pytest.raises(RefusedError, match="the scores are for 4 attention layers, the graph has 5"):
        require_graph(of_checkpoint, graph, None, n_layers=5)
    with pytest.raises(RefusedError, match="the plan was made from"):
        require_model(plans[1], spec, where="here")
    with pytest.raises(RefusedError, match="the scores: holds the weights of"):
        require_scores(plans[0], of_checkpoint)
    of_other.save(tmp_path / "other.json")
    with pytest.raises(RefusedError, match="but the scores are of"):
        prepare(str(graph), tmp_path / "out", scores=tmp_path / "other.json", needs_scores=True)
