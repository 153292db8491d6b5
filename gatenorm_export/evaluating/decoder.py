"""What an evaluation needs of a model, and that on ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gatenorm_export.comparing.feeds import step_feed
from gatenorm_export.decode_signature import TOKENS, signature_of
from gatenorm_export.errors import RefusedError
from gatenorm_export.sessions import open_session

LOGITS_BYTES = 256 * 1024 * 1024
"""Logits that one call may give: at a vocabulary of 150k in fp32 that is 447 positions, and a whole batch of prompts
of 2048 tokens would be gigabytes."""

_PLAIN_DTYPES: dict[str, type[np.generic]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


@dataclasses.dataclass(frozen=True)
class Reach:
    """The largest batch, prompt and context (cache and new tokens) that a decoder takes; None: no bound is known.

    ``pieces`` says whether a prompt may be fed piece by piece onto its own cache.
    """

    batch: int | None = None
    prompt: int | None = None
    context: int | None = None
    pieces: bool = True


class Decoder(Protocol):
    """A causal decoder that keeps its own KV cache.

    Called with ``tokens`` [batch, step] and ``mask`` [batch, past + step], it gives the logits [batch, step,
    vocabulary] in the model's own precision. A mask as long as the tokens begins new sequences, a longer one goes on
    with those of the call before. With ``keep`` False nothing will go on from here.
    """

    name: str
    backend: str
    reach: Reach
    vocabulary: int | None
    cached: bool

    def __call__(self, tokens: np.ndarray, mask: np.ndarray, *, keep: bool) -> np.ndarray:
        """Run one step."""

    def close(self) -> None:
        """Give the model's memory back."""


class GraphDecoder:
    """A decoder graph on ONNX Runtime's CPU provider. Its cache tensors may have any names, and may be fewer."""

    def __init__(self, graph: Path) -> None:
        import onnxruntime

        self.name = str(graph)
        self.backend = f"ONNX Runtime {onnxruntime.__version__} CPU"
        self._session: Any = open_session(graph)
        self._signature = signature_of(self._session, graph)
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._dtypes = {name: _PLAIN_DTYPES.get(inputs[name].type, np.int64) for name in self._signature.plain}
        batch, vocabulary = inputs[TOKENS].shape[0], self._session.get_outputs()[0].shape[-1]
        self.vocabulary = vocabulary if isinstance(vocabulary, int) else None
        self.cached = bool(self._signature.past)
        self.reach = Reach(batch=batch if isinstance(batch, int) else None, pieces=self.cached)
        self._past: list[np.ndarray] = []

    def __call__(self, tokens: np.ndarray, mask: np.ndarray, *, keep: bool) -> np.ndarray:
        """Run one step; see :class:`Decoder`.

        Raises:
            RefusedError: ONNX Runtime cannot run the graph on this, or it does not give logits of every token.
        """
        signature = self._signature
        if mask.shape[1] == tokens.shape[1]:
            self._past = [entry.empty(tokens.shape[0]) for entry in signature.past]
        feed = step_feed(tokens, mask)
        inputs = {name: feed[name].astype(self._dtypes[name], copy=False) for name in signature.plain}
        inputs |= {entry.name: past for entry, past in zip(signature.past, self._past, strict=True)}
        try:
            logits, *present = self._session.run([signature.logits, *(signature.present if keep else ())], inputs)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RefusedError(f"{self.name}: ONNX Runtime cannot run it on {tokens.shape} tokens ({first})") from error
        self._past = present
        return checked(self.name, logits, tokens)

    def close(self) -> None:
        """Close the session."""
        self._session, self._past = None, []


def checked(name: str, logits: Any, tokens: np.ndarray) -> np.ndarray:
    """``logits``, known to be [batch, step, vocabulary].

    Raises:
        RefusedError: they are of another shape, such as the last token's alone.
    """
    found = np.asarray(logits)
    if found.ndim != 3 or found.shape[:2] != tokens.shape:
        raise RefusedError(
            f"{name}: its first output is {list(found.shape)} for {list(tokens.shape)} tokens; lm-eval needs the "
            "logits of every token, export the graph with them"
        )
    return found


def check_reach(decoder: Decoder, prompt: int, new: int = 0) -> None:
    """Make sure that the decoder takes a prompt of ``prompt`` tokens, and ``new`` ones behind it.

    Raises:
        RefusedError: it does not; cutting prompts is for the user to decide.
    """
    longest, context = decoder.reach.prompt, decoder.reach.context
    if longest is not None and prompt > longest:
        raise RefusedError(
            f"{decoder.name}: takes prompts of {longest} tokens, and there is one of {prompt}; build it with --prompt "
            f"{prompt}, or cut prompts on the left with --max-length {longest}"
        )
    if context is not None and prompt + new > context:
        raise RefusedError(
            f"{decoder.name}: takes contexts of {context} tokens, and a prompt of {prompt} with {new} new ones is "
            f"longer; build it with --context {prompt + new}"
        )


def in_pieces(
    decoder: Decoder, tokens: np.ndarray, mask: np.ndarray, *, keep: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Feed prompts ``tokens`` [batch, length] and yield (first position, logits of a piece) until all is fed.

    Pieces keep the logits of one call within ``LOGITS_BYTES``. A decoder without a cache, and an engine, are fed
    whole.
    """
    batch, length = tokens.shape
    size = length
    if decoder.reach.pieces:
        size = max(1, LOGITS_BYTES // (4 * (decoder.vocabulary or 2**18) * batch))
    for start in range(0, length, size):
        stop = min(start + size, length)
        yield start, decoder(tokens[:, start:stop], mask[:, :stop], keep=keep or stop < length)
