"""Log likelihoods of continuations, with the conventions of lm-eval's own Hugging Face model class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gatenorm_export.comparing.quality import log_softmax
from gatenorm_export.errors import RefusedError
from gatenorm_export.evaluating.decoder import Decoder, check_reach, in_pieces
from gatenorm_export.evaluating.kept_answers import KeptAnswers
from gatenorm_export.kept_work import KeptWork

Pair = tuple[Sequence[int], Sequence[int]]
"""The tokens of a context (at least one) and of its continuation (at least one)."""

# Rows whose distributions are held in float64 at a time: at a vocabulary of 150k they are 77 MB.
_ROWS_AT_ONCE = 64


@dataclasses.dataclass
class _Answer:
    """The sum of log probabilities of one continuation so far, and whether greedy decoding would have given it."""

    nats: float = 0.0
    greedy: bool = True


def log_likelihoods(
    decoder: Decoder,
    pairs: Sequence[Pair],
    *,
    batch: int,
    max_length: int,
    advance: Callable[[int], None],
    kept: KeptAnswers | None = None,
) -> list[tuple[float, bool]]:
    """log p(continuation | context) in nats, natural logarithm, and whether the continuation is the greedy one.

    As in lm-eval's HFLM: the last token is never an input; what is longer than ``max_length`` loses tokens on the left;
    inputs are run from the longest to the shortest; pairs with equal inputs, such as the one-token answers to a
    question, share one run. ``advance`` is told how many pairs are done. Batches
    whose answers were ``kept`` are not run.

    Rows are padded on the right with the mask all ones: what a causal model computes before the padding does not
    depend on it, whatever the graph makes of masks.

    Raises:
        RefusedError: a continuation is longer than ``max_length``, an input than the decoder takes, or the logits are
            not numbers.
    """
    inputs: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if len(continuation) > max_length:
            raise RefusedError(
                f"a continuation of {len(continuation)} tokens does not fit max length {max_length}; it cannot be "
                "scored whole, give a greater --max-length if the model takes it"
            )
        whole = (*context, *continuation)
        inputs.setdefault(whole[-(max_length + 1) :][:-1], []).append(index)
    order = sorted(inputs, key=lambda tokens: (-len(tokens), tokens))
    if order:
        check_reach(decoder, len(order[0]))

    def compute(rows: list[tuple[int, ...]]) -> list[tuple[float, bool]]:
        members = [inputs[row] for row in rows]
        scored = {index: _Answer() for indices in members for index in indices}
        _score(decoder, rows, members, pairs, scored)
        return [(answer.nats, answer.greedy) for answer in scored.values()]

    answers = [(0.0, False)] * len(pairs)
    for rows, scored in (kept or KeptAnswers(KeptWork(None))).each(
        [order[start : start + batch] for start in range(0, len(order), batch)],
        what=f"{decoder.name}: log likelihoods",
        asked=lambda rows: [[row, list(pairs[index][1])] for row in rows for index in inputs[row]],
        compute=compute,
        read=_read,
    ):
        for index, answer in zip((index for row in rows for index in inputs[row]), scored, strict=True):
            answers[index] = answer
        advance(len(scored))
    if any(np.isnan(nats) for nats, _ in answers):
        raise RefusedError(f"{decoder.name}: gives logits that are not numbers; the model cannot be evaluated")
    return answers


def _read(kept: Any) -> tuple[float, bool]:
    nats, greedy = kept
    return float(nats), bool(greedy)


def _score(
    decoder: Decoder,
    rows: Sequence[tuple[int, ...]],
    members: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    answers: Mapping[int, _Answer],
) -> None:
    longest = len(rows[0])
    tokens = np.array([[*row, *[0] * (longest - len(row))] for row in rows], np.int64)
    for first, logits in in_pieces(decoder, tokens, np.ones_like(tokens), keep=False):
        last = first + logits.shape[1]
        for row, (length, indices) in enumerate(zip(map(len, rows), members, strict=True)):
            for index in indices:
                targets = np.asarray(pairs[index][1], np.int64)
                # Position p predicts token p + 1, so the continuation is predicted by the input's last positions.
                begin = length - len(targets)
                low, high = max(begin, first), min(length, last)
                if low < high:
                    _add(answers[index], logits[row, low - first : high - first], targets[low - begin : high - begin])


def _add(answer: _Answer, logits: np.ndarray, targets: np.ndarray) -> None:
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        part, wanted = logits[start : start + _ROWS_AT_ONCE], targets[start : start + _ROWS_AT_ONCE]
        answer.nats += float(log_softmax(part)[np.arange(len(wanted)), wanted].sum())
        answer.greedy &= bool((part.argmax(axis=-1) == wanted).all())
