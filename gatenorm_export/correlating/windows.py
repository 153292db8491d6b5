"""A text as windows of tokens for forward passes, with the special tokens that the model expects around a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from gatenorm_export.comparing.quality import WINDOW_TOKENS
from gatenorm_export.comparing.text import MINIMUM_TOKENS, Text
from gatenorm_export.errors import InputError
from gatenorm_export.model_configs import configs_from

_WINDOWS_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class Windows:
    """The tokens of a text, cut into windows of ``length``; ``before`` and ``after`` are put around each window.

    They are computed, as the model was trained with them, and not counted: beginnings draw attention to themselves.
    """

    tokens: np.ndarray
    length: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def n_batches(self) -> int:
        """How many batches :meth:`batches` yields."""
        whole, rest = divmod(len(self.tokens), self.length)
        return -(-whole // _WINDOWS_AT_ONCE) + (rest > 0)

    def batches(self) -> Iterator[tuple[np.ndarray, slice]]:
        """Yield token numbers [windows, tokens] int64, a few windows of one length at a time, and which columns count.

        Every token of the text is in exactly one window; the last may be shorter than the others.
        """
        whole = len(self.tokens) // self.length
        windows = self.tokens[: whole * self.length].reshape(whole, self.length)
        parts = [windows[start : start + _WINDOWS_AT_ONCE] for start in range(0, whole, _WINDOWS_AT_ONCE)]
        rest = self.tokens[whole * self.length :]
        for part in [*parts, rest[None]] if len(rest) else parts:
            framed = [np.tile(np.array(frame, np.int64), (len(part), 1)) for frame in (self.before, self.after)]
            yield np.hstack([framed[0], part, framed[1]]), slice(len(self.before), len(self.before) + part.shape[1])


def cut_windows(text: Text, tokenizer: Any, config: Any, *, limit: int) -> Windows:
    """The first ``limit`` tokens of a text as windows of 256, or of half the model's context where that is less.

    Half, because some families keep a few of their positions for themselves (RoBERTa starts at 2).

    Raises:
        InputError: the text is too short to judge anything by, or has tokens that the model does not know.
    """
    # Some tokenizers warn that a text is longer than the model's context; it is cut into windows here.
    found = tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"][:limit]
    tokens = np.array(found, np.int64)
    if len(tokens) < MINIMUM_TOKENS:
        raise InputError(f"{text.name}: {len(tokens)} tokens are too few to judge by; give at least {MINIMUM_TOKENS}")
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is not None and tokens.max() >= vocabulary:
        raise InputError(f"{text.name}: token {tokens.max()} is not among the model's {vocabulary}; wrong tokenizer")
    positions = configs_from(config).max_positions or 2 * WINDOW_TOKENS
    before, after = _frame(tokenizer)
    room = min(WINDOW_TOKENS, positions // 2) - len(before) - len(after)
    if room < 1:
        raise InputError(f"the model has {positions} positions, too few for windows of text")
    return Windows(tokens, room, before, after)


def _frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return tuple(framed[:start]), tuple(framed[start + len(bare) :])
    return (), ()
