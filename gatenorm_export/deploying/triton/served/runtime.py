"""What generation needs of whatever runs the decoder."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Step:
    """The new tokens of a step [batch, step], the mask over past and step [batch, past + step], and the positions of
    the new tokens [batch, step], all int64."""

    tokens: np.ndarray
    mask: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray, mask: np.ndarray) -> Step:
        """Positions count what the mask shows, from 0; what it hides gets 0."""
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -tokens.shape[1] :]
        return cls(np.ascontiguousarray(tokens), np.ascontiguousarray(mask), np.ascontiguousarray(positions))


class Runtime(Protocol):
    """A loaded decoder. A cache is whatever the runtime keeps between steps, freed when nobody holds it any more."""

    longest_step: int | None
    """The most tokens that one step takes; None: no bound."""

    def step(self, step: Step, cache: Any) -> tuple[np.ndarray, Any]:
        """Run one step on ``cache`` (None: an empty one).

        Returns the logits behind each row's last token [batch, vocabulary] in float32, and the next step's cache.
        """
