"""Greedy continuations with the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gatenorm_export.evaluating.decoder import Decoder, in_pieces

# Two runs of one graph in other batch shapes differ by rounding, which stays orders below this share of the logits'
# range; padding that is taken for text moves logits by a good part of the range.
_SAME = 1e-3


def continue_greedily(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, limit: int, done: Callable[[list[int]], bool]
) -> list[list[int]]:
    """The likeliest next tokens of each prompt, until ``done`` says so of them or there are ``limit``.

    Prompts of different length are padded on the left and hidden by the mask; see :func:`honours_left_padding`. A
    decoder without a cache reads the whole text again for each token.
    """
    longest = max(map(len, prompts))
    tokens, mask = padded(prompts, longest)
    continued: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    step = tokens
    while True:
        new = _last(decoder, step, mask).argmax(axis=-1)
        for row, token in enumerate(new):
            if not finished[row]:
                continued[row].append(int(token))
                finished[row] = len(continued[row]) == limit or done(continued[row])
        if all(finished):
            return continued
        step = new[:, None].astype(np.int64)
        if not decoder.cached:
            step = tokens = np.concatenate([tokens, step], axis=1)
        mask = np.concatenate([mask, np.ones((len(prompts), 1), np.int64)], axis=1)


def padded(prompts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens and mask, [prompts, ``length``] each, padding on the left."""
    tokens = np.zeros((len(prompts), length), np.int64)
    mask = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return tokens, mask


def honours_left_padding(decoder: Decoder, prompt: Sequence[int], length: int) -> bool:
    """Whether ``prompt``, padded on the left to ``length``, gives what it gives alone: at its end, and a step later.

    Some graphs count the mask's ones from the left, or tell positions by themselves; no signature says so.
    """
    rows = []
    for width in (len(prompt), length):
        tokens, mask = padded([prompt], width)
        first = _last(decoder, tokens, mask)
        step = np.array([[prompt[-1]]], np.int64)
        step = step if decoder.cached else np.concatenate([tokens, step], axis=1)
        second = _last(decoder, step, np.concatenate([mask, np.ones((1, 1), np.int64)], axis=1))
        rows.append(np.concatenate([first, second]).astype(np.float64))
    # A NaN compares false.
    return bool(np.abs(rows[0] - rows[1]).max() <= _SAME * np.ptp(rows[0]))


def _last(decoder: Decoder, step: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The logits behind the last token of each row, [batch, vocabulary]."""
    if mask.shape[1] > step.shape[1]:
        return decoder(step, mask, keep=True)[:, -1]
    logits = np.zeros(0)
    for _, piece in in_pieces(decoder, step, mask, keep=True):
        logits = piece[:, -1].copy()
    return logits
