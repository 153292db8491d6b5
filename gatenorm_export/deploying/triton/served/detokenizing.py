"""Token ids to text, piece by piece, as a stream needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
"""What a decoder shows for bytes that are no whole character yet."""


class TextStream:
    """The text of tokens that come one by one. The pieces joined are the text of all tokens at once.

    A token's text may depend on the tokens before it (spaces, characters of several tokens), so a short window is
    decoded again with each token, and what is no whole character yet is held back.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._told = 0

    def push(self, token: int) -> str:
        """The text that ``token`` adds; empty where it only begins a character."""
        before = self._decode(self._window[: self._told])
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_BROKEN) or len(text) <= len(before):
            return ""
        # The tokens just told stay as context of the next ones.
        self._window, self._told = self._window[self._told :], len(self._window) - self._told
        return text[len(before) :]

    def rest(self) -> str:
        """What is still held back, whole or not."""
        before = self._decode(self._window[: self._told])
        return self._decode(self._window)[len(before) :]
