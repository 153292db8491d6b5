"""What a user asks of a recovery, and how a text becomes windows to train on and windows held out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gatenorm_export.errors import InputError, UsageError

if TYPE_CHECKING:
    from gatenorm_export.records import RecoveryLoss
    from graph_passes import KVNames

MINIMUM_WINDOWS = 10
"""Nine windows to train on and one held out; with fewer the held-out loss is too noisy to choose a checkpoint by."""

HELD_OUT_SHARE = 10
HELD_OUT_TOKENS = 1024
"""The last tenth of the text is held out, at most this many tokens: it is judged nine times while training runs (4 s
each on one core for a 135M model), and the unpruned model's logits on it are kept (200 MB at a vocabulary of 50k)."""

DEFAULT_MINUTES = 5.0


@dataclasses.dataclass(frozen=True)
class RecoverRequest:
    """How to fine-tune: for ``steps`` steps, or about ``minutes`` minutes where ``steps`` is None.

    ``against`` is a repaired graph of the same layers; its repair is judged on the same texts.

    ``window`` is in tokens, ``batch`` in windows per step; ``eval_texts`` empty is the text that gatenorm ships. The
    defaults were measured on SmolLM2 without 4 of 30 sublayers, on text of kinds that it was not trained on: over 28
    steps a learning rate of 3e-3 gave back more than 1e-3. In the same minutes ``text`` lowers perplexity more than
    ``distill``, but the same training lowers the unpruned model's too, and held against that it gives back no more;
    ``distill`` leaves 30 to 46 % less KL to the unpruned model, and agrees with it on more tokens.
    """

    text: Path
    eval_texts: tuple[Path, ...] = ()
    max_text_tokens: int = 2048
    steps: int | None = None
    minutes: float = DEFAULT_MINUTES
    rank: int = 8
    learning_rate: float = 3e-3
    window: int = 256
    batch: int = 2
    loss: RecoveryLoss = "distill"
    seed: int = 0
    kv_names: KVNames = "dense"
    against: Path | None = None
    command: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            UsageError: one of them is out of its range.
        """
        for name, least in (("rank", 1), ("batch", 1), ("window", 8), ("max_text_tokens", 64)):
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value}: too small; give {least} or more")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps {self.steps}: nothing would be trained; give 1 or more")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: not a seed; give 0 or more")
        for name in ("minutes", "learning_rate"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"--{name.replace('_', '-')} {value:g}: not a positive number; give one")


@dataclasses.dataclass(frozen=True)
class Windows:
    """Token windows [n, window] to train on, and the tokens [n] of the end of the text that are held out."""

    train: np.ndarray
    held_out: np.ndarray


def split_windows(tokens: np.ndarray, window: int, name: str) -> Windows:
    """Cut ``tokens`` [n] of the text ``name`` into whole windows; the last tenth of them is held out.

    Held out is the end and not a sample, because windows that touch share a subject: a sample would be easier than
    text that was not seen. What does not fill a window at the end is left out.

    Raises:
        InputError: the text is too short.
    """
    n = len(tokens) // window
    if n < MINIMUM_WINDOWS:
        raise InputError(
            f"{name}: {len(tokens):,} tokens are {n} windows of {window}; give a text of at least "
            f"{MINIMUM_WINDOWS * window:,} tokens, or a smaller --window"
        )
    held = max(1, min(n // HELD_OUT_SHARE, HELD_OUT_TOKENS // window))
    windows = tokens[: n * window].reshape(n, window)
    return Windows(windows[:-held], windows[-held:].reshape(-1))
