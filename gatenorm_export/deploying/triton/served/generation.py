"""Greedy generation of a few prompts together, one step at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gatenorm_export.deploying.triton.served.detokenizing import TextStream
from gatenorm_export.deploying.triton.served.prompts import Prompt
from gatenorm_export.deploying.triton.served.runtime import Runtime, Step

PIECE = 512
"""Prompts are read in pieces of so many tokens: a long one keeps the others waiting for one piece at most, and its
logits, which are computed for every token, stay small."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text and tokens for the client; ``reason`` is "stop" or "length" with the last one, and empty before."""

    text: str
    tokens: tuple[int, ...]
    reason: str


class Client(Protocol):
    """Whoever waits for an answer."""

    def gone(self) -> bool:
        """Whether nobody waits any more."""

    def send(self, piece: Piece) -> None:
        """Hand over a piece."""

    def fail(self, message: str) -> None:
        """End with an error that is the server's."""

    def forget(self) -> None:
        """End without an answer, for a client that is gone."""


class Row:
    """One prompt on its way: what was generated, and what of it was sent."""

    def __init__(self, prompt: Prompt, client: Client, text: TextStream | None) -> None:
        self.prompt, self.client, self.text = prompt, client, text
        self.tokens: list[int] = []
        self.open = True
        self._held: list[str] = []

    def take(self, token: int, stops: frozenset[int]) -> None:
        """Another token; it is sent at once, or kept until all are there."""
        self.tokens.append(token)
        stopped = token in stops and not self.prompt.ignore_eos
        reason = "stop" if stopped else "length" if len(self.tokens) == self.prompt.max_tokens else ""
        piece = "" if self.text is None else self.text.push(token) + (self.text.rest() if reason else "")
        self.open = not reason
        if self.prompt.stream:
            self.client.send(Piece(piece, (token,), reason))
            return
        self._held.append(piece)
        if reason:
            self.client.send(Piece("".join(self._held), tuple(self.tokens), reason))

    def drop_if_gone(self) -> None:
        """Stop computing for a client that does not wait any more."""
        if self.open and self.client.gone():
            self.open = False
            self.client.forget()

    def fail(self, message: str) -> None:
        """End with an error, if it has not ended."""
        if self.open:
            self.open = False
            self.client.fail(message)


class Generation:
    """Rows that are decoded together, prompts of unlike length padded on the left. A row that has ended is computed on
    until all have, since caches of several rows cannot lose one."""

    def __init__(self, runtime: Runtime, rows: Sequence[Row], stops: frozenset[int]) -> None:
        self._runtime, self._stops = runtime, stops
        self.rows = tuple(rows)
        longest = max(len(row.prompt.tokens) for row in rows)
        self._unread = np.zeros((len(rows), longest), np.int64)
        self._mask = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            start = longest - len(row.prompt.tokens)
            self._unread[index, start:], self._mask[index, start:] = row.prompt.tokens, 1
        self._read = 0
        self._cache: Any = None
        self._piece = min(PIECE, runtime.longest_step or PIECE)

    def advance(self) -> bool:
        """Run one step; whether there is more to do."""
        for row in self.rows:
            row.drop_if_gone()
        if not any(row.open for row in self.rows):
            self._cache = None
            return False
        tokens = self._unread[:, : self._piece]
        self._unread = self._unread[:, self._piece :]
        self._read += tokens.shape[1]
        logits, self._cache = self._runtime.step(Step.of(tokens, self._mask[:, : self._read]), self._cache)
        if not self._unread.size:
            self._extend(logits)
        return any(row.open for row in self.rows)

    def fail(self, message: str) -> None:
        """End every row with an error, and free the caches."""
        self._cache = None
        for row in self.rows:
            row.fail(message)

    def _extend(self, logits: np.ndarray) -> None:
        if np.isnan(logits).any():
            raise ArithmeticError("the model computed no numbers (NaN)")
        # argmax takes the first of equal ones, so ties go to the lower id.
        new = logits.argmax(axis=-1).astype(np.int64)
        for row, token in zip(self.rows, new, strict=True):
            if row.open:
                row.take(int(token), self._stops)
        self._unread = new[:, None]
        self._mask = np.concatenate([self._mask, np.ones_like(self._unread)], axis=1)
