"""The script of a faithfulness check: a left-padded prefill, decode steps, a chunk onto the cache, decode steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS

PROMPT_LENGTHS = (24, 17)
DECODE_STEPS, CHUNK, LATE_STEPS = 8, 4, 2

Feed = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Script:
    """Feeds in order, with a name each."""

    names: tuple[str, ...]
    feeds: tuple[Feed, ...]


def step_feed(tokens: np.ndarray, mask: np.ndarray) -> Feed:
    """The feed for ``tokens`` [batch, step] at the end of ``mask`` [batch, past + step].

    Positions count what the mask shows, from 0; padding gets position 0, which no visible token attends to.
    """
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -tokens.shape[1] :]
    return {TOKENS: tokens, MASK: mask, POSITIONS: positions}


def make_script(logits_of: Callable[[Feed], np.ndarray], vocabulary: int, seed: int = 0) -> Script:
    """Write the script with the greedy tokens of a reference, which ``logits_of`` runs step by step.

    Prompts are random tokens: the check is about arithmetic, and random tokens reach every row of the embedding.
    """
    rng = np.random.default_rng(seed)
    batch, longest = len(PROMPT_LENGTHS), max(PROMPT_LENGTHS)
    mask = np.ones((batch, longest), np.int64)
    for row, length in enumerate(PROMPT_LENGTHS):
        mask[row, : longest - length] = 0
    names, feeds = ["prefill"], [step_feed(rng.integers(0, vocabulary, size=mask.shape), mask)]
    greedy = _greedy(logits_of(feeds[-1]))

    def extend(name: str, tokens: np.ndarray) -> np.ndarray:
        nonlocal mask
        mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
        names.append(name)
        feeds.append(step_feed(tokens, mask))
        return _greedy(logits_of(feeds[-1]))

    for index in range(DECODE_STEPS):
        greedy = extend(f"decode {index + 1}", greedy)
    chunk = rng.integers(0, vocabulary, size=(batch, CHUNK - 1))
    greedy = extend(f"chunk of {CHUNK}", np.concatenate([greedy, chunk], axis=1))
    for index in range(LATE_STEPS):
        greedy = extend(f"decode {DECODE_STEPS + index + 1}", greedy)
    return Script(tuple(names), tuple(feeds))


def _greedy(logits: np.ndarray) -> np.ndarray:
    """The most likely next token of each row, [batch, 1]."""
    return np.asarray(logits[:, -1:, :].argmax(axis=-1), np.int64)
