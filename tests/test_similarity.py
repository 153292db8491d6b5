"""How alike results are, with known answers, and the sentences that they are results of."""

from __future__ import annotations

import numpy as np
import pytest

from gatenorm_export.comparing.forward_quality import split_sentences
from gatenorm_export.comparing.similarity import class_quality, edit_distance, embedding_quality

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
    assert crossed.neighbours == 3
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    changed = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]))
    classes = class_quality(logits, changed, **facts)
    assert classes.top1_agreement == 0.5
    assert classes.kl_nats == pytest.approx(0.125 * np.log(2))
    assert edit_distance([1, 2, 3], [1, 3]) == 1
    assert edit_distance([], [4, 4]) == 2
    assert edit_distance([1, 2, 3, 4], [2, 3, 5, 4]) == 2


def test_sentences_are_split_and_prose_without_full_stops_is_cut() -> None:
    assert split_sentences("A b. C d! E f? G h.\n\nI j. K. L. M. N.")[:5] == ["A b.", "C d!", "E f?", "G h.", "I j."]
    assert {len(part.split()) for part in split_sentences(WORDS)} == {12}
