"""What a client may ask for, checked before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_EMPTY = "the prompt is empty; give one token at least"


class BadRequestError(ValueError):
    """The request cannot be answered as it is; the text says why, for the client."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """The tensors of a request as they came; None where one is absent."""

    text: np.ndarray | None
    tokens: np.ndarray | None
    max_tokens: np.ndarray | None
    stream: np.ndarray | None
    ignore_eos: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A request that can be answered: the prompt's tokens, at most ``max_tokens`` behind it."""

    tokens: tuple[int, ...]
    max_tokens: int
    stream: bool
    ignore_eos: bool


@dataclasses.dataclass(frozen=True)
class Limits:
    """The size of the vocabulary, the most tokens of prompt and answer together, and how many new ones if not asked:
    fewer where the context has no room for them."""

    vocabulary: int
    context: int
    default_tokens: int


class Tokenizer(Protocol):
    """Text to tokens."""

    def encode(self, text: str, limit: int) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts around it.

        Raises:
            BadRequestError: there are more than ``limit``.
        """


class BundledTokenizer:
    """The bundle's tokenizer.json."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        self._inner: Any = tokenizers.Tokenizer.from_file(str(path))
        self._inner.no_truncation()
        self._inner.no_padding()
        self._longest_token = max(map(len, self._inner.get_vocab()), default=1)

    def encode(self, text: str, limit: int) -> list[int]:
        """See :class:`Tokenizer`."""
        # Before the tokenizer works through it: a text so long has more tokens in any case.
        if len(text) > limit * self._longest_token:
            raise BadRequestError(f"a text of {len(text):,} characters exceeds {limit} tokens; shorten it")
        tokens = [int(token) for token in self._inner.encode(text).ids]
        if len(tokens) > limit:
            raise BadRequestError(f"the text has {len(tokens)} tokens, at most {limit} are taken; shorten it")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


def read_prompt(ask: Ask, tokenizer: Tokenizer | None, limits: Limits) -> Prompt:
    """Check a request.

    Raises:
        BadRequestError: it asks for nothing, for two things, or for more than the model takes.
    """
    max_tokens = _number("max_tokens", ask.max_tokens, limits.default_tokens)
    if max_tokens < 1:
        raise BadRequestError(f"max_tokens is {max_tokens}; ask for one token at least")
    tokens = _tokens(ask, tokenizer, limits)
    if not tokens:
        raise BadRequestError(_EMPTY)
    if ask.max_tokens is None:
        max_tokens = max(1, min(max_tokens, limits.context - len(tokens)))
    if len(tokens) + max_tokens > limits.context:
        raise BadRequestError(
            f"a prompt of {len(tokens)} tokens and {max_tokens} new ones exceed the context of {limits.context}; "
            "shorten the prompt or lower max_tokens"
        )
    stream, ignore_eos = _number("stream", ask.stream, 0), _number("ignore_eos", ask.ignore_eos, 0)
    return Prompt(tokens, max_tokens, stream=bool(stream), ignore_eos=bool(ignore_eos))


def _tokens(ask: Ask, tokenizer: Tokenizer | None, limits: Limits) -> tuple[int, ...]:
    if (ask.text is None) == (ask.tokens is None):
        raise BadRequestError("give the prompt as text_input or as input_ids, and not as both")
    if ask.tokens is not None:
        tokens = tuple(int(token) for token in ask.tokens.reshape(-1)[: limits.context + 1])
        strange = next((token for token in tokens if not 0 <= token < limits.vocabulary), None)
        if strange is not None:
            raise BadRequestError(f"token {strange} is not in the vocabulary of {limits.vocabulary}")
        return tokens
    if tokenizer is None:
        raise BadRequestError("this model was bundled without a tokenizer; give input_ids")
    assert ask.text is not None
    if ask.text.size != 1:
        raise BadRequestError(f"text_input has {ask.text.size} elements; send one prompt in a request")
    text = read_text(ask.text.reshape(-1)[0])
    if not text:
        # A tokenizer that begins every text with a token of its own would make a prompt of it that nobody gave.
        raise BadRequestError(_EMPTY)
    return tuple(tokenizer.encode(text, limits.context - 1))


def read_text(value: Any) -> str:
    """One element of a string tensor.

    Raises:
        BadRequestError: it is not UTF-8.
    """
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadRequestError(f"the text is not UTF-8: {error.reason} at byte {error.start}") from error


def _number(name: str, array: np.ndarray | None, default: int) -> int:
    if array is None:
        return default
    if array.size != 1:
        raise BadRequestError(f"{name} has {array.size} elements; send one")
    return int(array.reshape(-1)[0])
