"""How alike results are, with known answers, and the sentences that they are results of."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from report_factory import a_comparison, a_faithfulness, a_material

from gatenorm_export.cli.tables import comparison_tables
from gatenorm_export.comparing import verdict
from gatenorm_export.comparing.forward_quality import split_sentences
from gatenorm_export.comparing.similarity import class_quality, edit_distance, embedding_quality, neighbour_overlap
from gatenorm_export.errors import RefusedError
from gatenorm_export.records import ComparisonReport, EmbeddingQuality
from gatenorm_export.reporting import render_html, render_markdown

WORDS = " ".join(f"w{number}" for number in range(600))


def test_measures_have_known_answers() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 5))
    facts = {"text": "t", "text_sha256": "", "items": "things"}
    same = embedding_quality(vectors, 3 * vectors, embedding="e", **facts)
    assert (same.mean_cosine, same.neighbour_overlap, same.spearman_rho) == pytest.approx((1, 1, 1))
    other = embedding_quality(np.eye(3), np.roll(np.eye(3), 1, axis=1), embedding="e", **facts)
    assert other.mean_cosine == pytest.approx(0)
    # Two groups; the pruned model pairs each item with one of the other group.
    base = np.array([[1, 0.1], [1, -0.1], [-0.1, 1], [0.1, 1]])
    crossed = embedding_quality(base, base[[0, 2, 1, 3]], embedding="e", **facts)
    assert (crossed.neighbours, crossed.neighbour_overlap) == (1, 0)
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    changed = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]))
    classes = class_quality(logits, changed, **facts)
    assert classes.top1_agreement == 0.5
    assert classes.kl_nats == pytest.approx(0.125 * np.log(2))
    assert edit_distance([1, 2, 3], [1, 3]) == 1
    assert edit_distance([], [4, 4]) == 2
    assert edit_distance([1, 2, 3, 4], [2, 3, 5, 4]) == 2


def judged(base: np.ndarray, pruned: np.ndarray, items: str = "images") -> EmbeddingQuality:
    return embedding_quality(base, pruned, text="t", text_sha256="", items=items, embedding="e")


def said_of(quality: EmbeddingQuality) -> str:
    report = a_comparison()
    facts = report.base_sizes.facts, report.pruned_sizes.facts
    return verdict(a_faithfulness(), quality, None, (), *facts)


@pytest.mark.parametrize(
    ("n_items", "neighbours"), [(3, 1), (4, 1), (5, 2), (6, 2), (7, 3), (9, 4), (10, 4), (11, 5), (12, 5), (60, 5)]
)
def test_as_many_items_are_left_out_as_are_neighbours(n_items: int, neighbours: int) -> None:
    """A model that has nothing in common with this one keeps what chance keeps, and that is never more than half."""
    draws = np.random.default_rng(n_items).normal(size=(50, 2, n_items, 4))
    found = [judged(base, other) for base, other in draws]
    assert {quality.neighbours for quality in found} == {neighbours}
    chance = neighbours / (n_items - 1)
    assert chance <= 0.5
    assert {quality.chance_overlap for quality in found} == {chance}
    assert np.mean([quality.neighbour_overlap for quality in found]) == pytest.approx(chance, abs=0.1)
    assert judged(draws[0, 0], 2 * draws[0, 0]).neighbour_overlap == 1


def test_a_model_that_keeps_what_chance_keeps_is_damaged() -> None:
    base, other = np.random.default_rng(6).normal(size=(2, 6, 4))
    # The six fall into one vector, and the two neighbours of each are two of the five others.
    for ruined in (np.ones((6, 4)), np.ones((6, 4)) + 1e-8 * other):
        found = judged(base, ruined)
        assert found.neighbour_overlap == pytest.approx(2 / 5)
        assert found.spearman_rho == 0
        assert "keeps 40% of the 2 nearest neighbours, where chance keeps 40%), which damages" in said_of(found)
    half = found.model_copy(update={"neighbour_overlap": 0.6})
    assert "keeps 60% of the 2 nearest neighbours, where chance keeps 40%), which damages" in said_of(half)
    assert "damages" not in said_of(half.model_copy(update={"n_items": 61, "n_distinct": 61}))
    assert "damages" not in said_of(judged(base, base))


@pytest.mark.parametrize(("items", "option"), [("images", "--images"), ("sentences", "--text")])
def test_items_of_one_vector_are_refused(items: str, option: str) -> None:
    rng = np.random.default_rng(2)
    vector, pruned = rng.normal(size=(1, 5)), rng.normal(size=(7, 5))
    rounding = 1e-7 * rng.normal(size=(7, 5))
    for base in (vector.repeat(7, axis=0), vector * np.arange(1.0, 8.0)[:, None], vector + rounding, np.zeros((7, 5))):
        with pytest.raises(RefusedError, match=f"gives all 7 {items} the same vector") as refused:
            judged(base, pruned, items)
        assert option in str(refused.value)
        assert "\n" not in str(refused.value)


def test_items_of_one_vector_count_once() -> None:
    """Equal items stay each other's nearest whatever is removed, which says nothing of the model."""
    base, other = np.random.default_rng(3).normal(size=(2, 7, 4))
    once, often = judged(base, other), judged(base.repeat(6, axis=0), other.repeat(6, axis=0))
    assert (often.n_items, often.n_distinct, often.neighbours) == (42, 7, 3)
    assert often.neighbour_overlap == pytest.approx(once.neighbour_overlap)
    assert often.spearman_rho == pytest.approx(once.spearman_rho)
    assert once.neighbour_overlap < 0.9
    page = render_markdown(dataclasses.replace(a_material(), comparison=a_comparison(quality=often)))
    assert "42 images, of which the unpruned model tells 7 apart" in page


def test_where_no_neighbours_can_be_asked_for_the_cosine_decides() -> None:
    pair, three = np.array([[1.0, 0.1], [0.2, 1.0], [0.2, 1.0]]), np.eye(3)
    turned = pair @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    for base, pruned, reason in (
        (pair, turned, "the unpruned model tells only 2 of the 3 images apart"),
        (
            three,
            three + np.eye(3)[[1, 2, 0]] * 1.5,
            "the 3 images that the unpruned model tells apart are equally near",
        ),
    ):
        found, same = judged(base, pruned), judged(base, base)
        assert (found.neighbour_overlap, found.spearman_rho) == (None, None)
        assert reason in found.no_order_reason
        assert f"(the cosine decides, for {found.no_order_reason}), which damages" in said_of(found)
        assert "damages" not in said_of(same)
        report = a_comparison(quality=found)
        material = dataclasses.replace(a_material(), comparison=report)
        for page in (render_html(material), render_markdown(material)):
            assert f"not given, for {found.no_order_reason}; the mean cosine decides" in page
            assert "Same neighbours" not in page
        assert comparison_tables(report)
        assert ComparisonReport.model_validate_json(report.model_dump_json()).quality == found


def test_ties_among_the_nearest_are_shared() -> None:
    base = np.array([[9, 3, 2, 1], [3, 9, 2, 1], [2, 2, 9, 1], [3, 2, 1, 9.0]])
    assert neighbour_overlap(base, base, 1) == 1
    # Rows 0 and 1: one of three, by chance. Row 2: both of its nearest are right. Row 3: as before.
    tied = np.array([[9, 1, 1, 1], [1, 9, 1, 1], [5, 4, 9, 1], [3, 2, 1, 9.0]])
    assert neighbour_overlap(base, tied, 1) == pytest.approx((1 / 3 + 1 / 3 + 1 + 1) / 4)


def test_sentences_are_split_and_prose_without_full_stops_is_cut() -> None:
    assert split_sentences("A b. C d! E f? G h.\n\nI j. K. L. M. N.")[:5] == ["A b.", "C d!", "E f?", "G h.", "I j."]
    assert {len(part.split()) for part in split_sentences(WORDS)} == {12}
