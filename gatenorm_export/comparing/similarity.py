"""How alike two models' results are: vectors, choices among classes, scores, labels, or texts. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gatenorm_export.comparing.quality import log_softmax, top_k_overlap
from gatenorm_export.errors import RefusedError
from gatenorm_export.records import ClassQuality, EmbeddingQuality, LabelQuality, ScoreQuality
from gatenorm_export.scoring.ranks import spearman

NEIGHBOURS = 5
"""Nearest neighbours that are asked for, at most; fewer where that would leave fewer others out than it takes."""

_TOP = 5

_SAME = 1e-5
"""Two directions that lie nearer are one and the same: float32 graphs round by about a tenth of this."""

_DIGITS = 10
"""Digits of a cosine that count: a distance of ``_SAME`` moves it by half of the last one."""


def embedding_quality(
    base: np.ndarray, pruned: np.ndarray, *, text: str, text_sha256: str, items: str, embedding: str
) -> EmbeddingQuality:
    """Judge vectors [items, size] of both models.

    The cosine of an item's two vectors says how far the pruned model moved it. Search and clustering only ask which
    items are near which, hence also the cosines among the items of one model, held against the other's: the rank
    correlation over all pairs, and how many of the nearest neighbours are the same. Both are of the items that the
    unpruned model tells apart: those that it gives one vector count once, for they stay together whatever is removed.

    Raises:
        RefusedError: the unpruned model gives every item the same vector.
    """
    first, second = _directions(base), _directions(pruned)
    cosines = (first * second).sum(axis=1)
    distinct = _told_apart(first)
    n_distinct = len(distinct)
    if n_distinct == 1:
        advice = "images with --images" if items == "images" else "text with --text, of words that its tokenizer knows"
        raise RefusedError(
            f"{text}: the unpruned model gives all {len(first)} {items} the same vector, up to its length, so that "
            f"pruning cannot be judged on them; give other {advice}"
        )
    among, others = (np.round(side[distinct] @ side[distinct].T, _DIGITS) for side in (first, second))
    pairs = np.triu_indices(n_distinct, 1)
    reason = ""
    if n_distinct < 3:
        reason = f"the unpruned model tells only {n_distinct} of the {len(first)} {items} apart"
    elif len(set(among[pairs].tolist())) == 1:
        reason = f"the {n_distinct} {items} that the unpruned model tells apart are equally near to each other"
    # As many as leave at least as many others out: where all are neighbours, all are kept, whatever is removed.
    neighbours = 0 if reason else min(NEIGHBOURS, (n_distinct - 1) // 2)
    # A pruned model to which all pairs are equally similar has no order left.
    order = None if reason else spearman(among[pairs].tolist(), others[pairs].tolist()) or 0.0
    return EmbeddingQuality(
        text=text,
        text_sha256=text_sha256,
        items=items,
        n_items=len(first),
        n_distinct=n_distinct,
        embedding=embedding,
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        neighbours=neighbours,
        neighbour_overlap=neighbour_overlap(among, others, neighbours) if neighbours else None,
        spearman_rho=order,
        no_order_reason=reason,
    )


def _directions(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths == 0, 1.0, lengths))


def _told_apart(directions: np.ndarray) -> np.ndarray:
    """The first item of each direction [items, size], as indices in their order."""
    squares = (directions**2).sum(axis=1)
    # By distance, not by cosine, which vectors of zeros have not.
    distances = squares[:, None] + squares - 2 * directions @ directions.T
    return np.flatnonzero((distances <= _SAME**2).argmax(axis=1) == np.arange(len(directions)))


def neighbour_overlap(base: np.ndarray, pruned: np.ndarray, neighbours: int) -> float:
    """Mean share of each item's ``neighbours`` nearest others by ``pruned`` that are among the nearest by ``base``.

    Both are similarities [items, items]. Of others that ``pruned`` has equally near, the last places go to each with
    equal chance, so that a model that tells nothing apart keeps what chance keeps. Of those that ``base`` has equally
    near, each is right.
    """
    # Nobody is a neighbour of itself.
    others = ~np.eye(len(base), dtype=bool)
    first, second = (side[others].reshape(len(base), -1) for side in (base, pruned))
    right = first >= np.partition(first, -neighbours, axis=1)[:, [-neighbours]]
    last = np.partition(second, -neighbours, axis=1)[:, [-neighbours]]
    nearer, tied = second > last, second == last
    share = (neighbours - nearer.sum(axis=1)) / tied.sum(axis=1)
    kept = (right & nearer).sum(axis=1) + share * (right & tied).sum(axis=1)
    return float(kept.mean() / neighbours)


def class_quality(base: np.ndarray, pruned: np.ndarray, *, text: str, text_sha256: str, items: str) -> ClassQuality:
    """Judge logits [items, classes] of both models. Of five classes or fewer the best five are not compared."""
    log_p, log_q = log_softmax(base), log_softmax(pruned)
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())
    return ClassQuality(
        text=text,
        text_sha256=text_sha256,
        items=items,
        n_items=len(base),
        n_classes=base.shape[-1],
        top1_agreement=top_k_overlap(base, pruned, 1) / len(base),
        top5_agreement=top_k_overlap(base, pruned, _TOP) / len(base) if base.shape[-1] > _TOP else None,
        # Rounding can leave a sum of exact zeros a hair below zero.
        kl_nats=max(kl, 0.0),
    )


def score_quality(base: np.ndarray, pruned: np.ndarray, *, text: str, text_sha256: str, items: str) -> ScoreQuality:
    """Judge scores [items, scores] of both models.

    What a ranking or a reward is used for depends on the order alone, a regression on the values too: hence the rank
    correlation over the items, and how far a score moves beside how far the unpruned ones lie apart.

    Raises:
        RefusedError: the unpruned model gives every item the same score.
    """
    first, second = base.astype(np.float64), pruned.astype(np.float64)
    spread = first.std(axis=0)
    if not spread.all():
        raise RefusedError(
            f"{text}: the unpruned model gives all {len(first)} {items} the same score, which no order can be told "
            "from; give others"
        )
    pairs = zip(first.T.tolist(), second.T.tolist(), strict=True)
    return ScoreQuality(
        text=text,
        text_sha256=text_sha256,
        items=items,
        n_items=len(first),
        n_scores=first.shape[1],
        # A pruned model that gives all items one score has no order left.
        spearman_rho=float(np.mean([spearman(*pair) or 0.0 for pair in pairs])),
        mean_deviation=float((np.abs(second - first).mean(axis=0) / spread).mean()),
    )


def label_quality(base: np.ndarray, pruned: np.ndarray, *, text: str, text_sha256: str, items: str) -> LabelQuality:
    """Judge logits [items, labels] of both models, where a label is given when its logit is above 0."""
    first, second = base > 0, pruned > 0
    either = int((first | second).sum())
    return LabelQuality(
        text=text,
        text_sha256=text_sha256,
        items=items,
        n_items=len(first),
        n_labels=first.shape[1],
        n_given=int(first.sum()),
        decision_agreement=float((first == second).mean()),
        equal_items=float((first == second).all(axis=1).mean()),
        common_labels=int((first & second).sum()) / either if either else None,
    )


def edit_distance(expected: Sequence[int], got: Sequence[int]) -> int:
    """The fewest insertions, deletions and replacements that turn one into the other (Levenshtein)."""
    row = list(range(len(got) + 1))
    for number, token in enumerate(expected, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(got, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (token != other))
    return row[-1]
