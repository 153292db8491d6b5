"""Plans: the lowest go, ties go deep, and what cannot be done is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_artifacts import a_model

from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.planning import DropRequest, make_plan, parse_layers, rank_layers
from gatenorm_export.records import Convention, CutCertainty, LayerScore, LayerScores
from gatenorm_export.scoring import depth_trend


def scores(*values: float) -> LayerScores:
    return LayerScores(
        model=a_model(len(values)),
        convention=Convention(checkpoint_dtype="float32"),
        layers=tuple(LayerScore(layer=layer, score=value) for layer, value in enumerate(values)),
        trends={"": depth_trend(list(values))},
    )


def drop(request: DropRequest, *values: float) -> tuple[int, ...]:
    return make_plan(scores(*values), request, scores_sha256="00").drop


def test_the_lowest_go_in_ascending_order() -> None:
    assert drop(DropRequest(drop=2), 9.0, 1.0, 5.0, 0.5) == (1, 3)
    assert drop(DropRequest(drop=0), 9.0, 1.0) == ()
    assert drop(DropRequest(drop=2), 9.0, 1.0) == (0, 1)


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        (slice(1, None), "scores 1 of the model's 2 layers, 1 times"),
        ([0, 1, 1], "scores 2 of the model's 2 layers, 3 times"),
    ],
)
def test_scores_without_a_layer_or_with_one_twice_are_no_scores(part: Any, complaint: str, tmp_path: Path) -> None:
    record = scores(2.0, 1.0).to_object()
    layers = record["layers"]
    record["layers"] = layers[part] if isinstance(part, slice) else [layers[place] for place in part]
    (tmp_path / "scores.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=complaint):
        LayerScores.load(tmp_path / "scores.json")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_score_is_finite(value: str, tmp_path: Path) -> None:
    record = scores(2.0, 1.0).to_object()
    record["layers"][1]["score"] = value
    (tmp_path / "scores.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"scores\.json: .*layers\.1\.score: .*finite"):
        LayerScores.load(tmp_path / "scores.json")


def test_of_equal_scores_the_deeper_layer_goes() -> None:
    assert drop(DropRequest(drop=2), 1.0, 1.0, 1.0, 1.0) == (2, 3)
    assert drop(DropRequest(drop=1), 2.0, 1.0, 1.0, 2.0) == (2,)


def test_protected_layers_stay() -> None:
    assert drop(DropRequest(drop=2, protect=(1,)), 9.0, 1.0, 5.0, 7.0) == (2, 3)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.1, 3), (0.33, 9), (0.5, 15), (1.0, 30)])
def test_a_ratio_is_rounded_down(ratio: float, count: int) -> None:
    assert len(drop(DropRequest(ratio=ratio), *range(30))) == count


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (DropRequest(drop=5), "cannot drop 5 attention sublayers: there are 4"),
        (DropRequest(drop=4, protect=(0,)), "there are 4, 1 of them protected"),
        (DropRequest(layers=(1, 4)), "cannot drop layer 4: the model has 4 layers, 0 to 3"),
        (DropRequest(drop=1, protect=(9,)), "cannot protect layer 9"),
        (DropRequest(layers=(1, 2), protect=(2,)), "layer 2 is both"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_refused(request_: DropRequest, complaint: str) -> None:
    with pytest.raises(RefusedError, match=complaint):
        drop(request_, 4.0, 3.0, 2.0, 1.0)


@pytest.mark.parametrize(
    "request_", [DropRequest(), DropRequest(drop=1, ratio=0.5), DropRequest(ratio=1.5), DropRequest(drop=-1)]
)
def test_a_contradictory_request_is_an_input_error(request_: DropRequest) -> None:
    with pytest.raises(InputError):
        drop(request_, 4.0, 3.0, 2.0, 1.0)


def test_lists_of_layers_are_read() -> None:
    assert parse_layers("24-27,29") == (24, 25, 26, 27, 29)
    assert parse_layers(" 3 , 1 ") == (1, 3)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "5-3", "1-", "-1", "1,1", "2-4,3", "1.5", "0-99999999999"])
def test_what_is_no_list_of_layers_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="layers"):
        parse_layers(text)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.data())
def test_nothing_that_stays_scores_below_what_goes(values: list[float], data) -> None:
    count = data.draw(st.integers(0, len(values)))
    gone = drop(DropRequest(drop=count), *values)
    assert len(gone) == count
    staying = [value for layer, value in enumerate(values) if layer not in gone]
    assert max((values[layer] for layer in gone), default=0.0) <= min(staying, default=float("inf"))


def sketched(*intervals: tuple[float, float], cuts: tuple[CutCertainty, ...] = ()) -> LayerScores:
    layers = tuple(
        LayerScore(layer=layer, score=(low + high) / 2, low=low, high=high)
        for layer, (low, high) in enumerate(intervals)
    )
    return scores(*(0.0 for _ in intervals)).model_copy(update={"layers": layers, "cuts": cuts})


def test_a_plan_from_sketched_scores_is_made_where_no_interval_crosses_the_cut() -> None:
    found = sketched((8.0, 9.0), (1.0, 2.0), (1.5, 2.5), (4.0, 5.0))
    assert make_plan(found, DropRequest(drop=2), scores_sha256="0").drop == (1, 2)
    with pytest.raises(RefusedError, match=r"do not decide which 1 are the lowest; score it again with --drop 1"):
        make_plan(found, DropRequest(drop=1), scores_sha256="0")
    # With the layer in doubt protected, the same cut is decided.
    assert make_plan(found, DropRequest(drop=1, protect=(2,)), scores_sha256="0").drop == (1,)


def test_a_tie_that_scoring_found_is_no_doubt() -> None:
    tie = CutCertainty(n=1, certain=False, tied=(1, 2), sentence="")
    found = sketched((8.0, 9.0), (1.0, 2.0), (1.0, 2.0), cuts=(tie,))
    assert make_plan(found, DropRequest(drop=1), scores_sha256="0").drop == (2,)
    # It was found without what is protected now.
    with pytest.raises(RefusedError, match="score it again with --drop 1 --protect 0 or --exact"):
        make_plan(found, DropRequest(drop=1, protect=(0,)), scores_sha256="0")


def test_an_order_needs_exact_scores() -> None:
    with pytest.raises(RefusedError, match="score it again with --exact"):
        rank_layers(sketched((1.0, 2.0), (3.0, 4.0)), DropRequest(drop=1), ordered=True)


def test_of_several_towers_one_must_be_named() -> None:
    layers = tuple(LayerScore(layer=n, score=float(n), tower=tower) for tower in ("text", "vision") for n in range(3))
    both = scores(0.0).model_copy(
        update={
            "layers": layers,
            "model": a_model().model_copy(
                update={"towers": tuple(a_model().towers[0].model_copy(update={"name": n}) for n in ("text", "vision"))}
            ),
        }
    )
    with pytest.raises(RefusedError, match=r"name one with --tower; it has text, vision"):
        make_plan(both, DropRequest(drop=1), scores_sha256="0")
    with pytest.raises(RefusedError, match="--tower cross: there is no such tower"):
        make_plan(both, DropRequest(drop=1, tower="cross"), scores_sha256="0")
    plan = make_plan(both, DropRequest(drop=1, tower="vision"), scores_sha256="0")
    assert (plan.tower, plan.n_layers, plan.drop) == ("vision", 3, (0,))
