"""The text that repairs are fitted on and removals are measured on, as windows of tokens."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.comparing.quality import WINDOW_TOKENS
from gatenorm_export.comparing.text import Text, load_text
from gatenorm_export.errors import InputError, needs
from gatenorm_export.framework import load_tokenizer
from gatenorm_export.records import ModelSpec

MEASURED_WINDOWS = 8
SHIPPED = ("calibration_technical.txt", "calibration_prose.txt")
"""Manuals, code, logs, licences, lessons, stories, dialogue: a repair that was fitted on one kind of text alone is
worse on the others (Python docstrings alone left 1.19 where as many tokens of mixed text left 1.10)."""


@dataclasses.dataclass(frozen=True)
class CorpusRequest:
    """Which texts: a user's own beside the shipped ones, or alone."""

    text: Path | None = None
    shipped: bool = True

    def decides(self) -> dict[str, str | bool | None]:
        """What identifies the texts, in JSON types."""
        return {"text": sha256_of(self.text) if self.text is not None else None, "shipped": self.shipped}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Windows [n, 256] of token numbers: some to fit on, others, never fitted on, to measure removals with."""

    fitted: np.ndarray
    measured: np.ndarray
    name: str

    @property
    def sha256(self) -> str:
        """Digest of all windows."""
        digest = hashlib.sha256()
        for windows in (self.fitted, self.measured):
            digest.update(np.ascontiguousarray(windows, np.int64).tobytes())
        return digest.hexdigest()


def load_corpus(request: CorpusRequest, folder: Path, spec: ModelSpec | None) -> Corpus:
    """Tokenise the texts with the tokenizer beside the graph, or else the checkpoint's, and cut them into windows.

    Raises:
        InputError: a text cannot be read or is too short, or there is no tokenizer.
        MissingPartError: transformers is not installed.
    """
    texts = [load_text(request.text)] if request.text is not None else []
    if request.shipped or not texts:
        texts += [_shipped(name) for name in SHIPPED]
    with needs("export", "tokenizing"):
        tokenizer = load_tokenizer(folder, spec)
    if tokenizer is None:
        raise InputError(f"{folder}: holds no tokenizer to read the calibration text with; copy the model's there")
    windows: list[np.ndarray] = []
    for text in texts:
        tokens = np.array(tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
        n = len(tokens) // WINDOW_TOKENS
        if n < 2:
            raise InputError(
                f"{text.name}: {len(tokens)} tokens are too few to fit and measure on; give {2 * WINDOW_TOKENS} or more"
            )
        windows.extend(tokens[: n * WINDOW_TOKENS].reshape(n, WINDOW_TOKENS))
    return split_windows(np.stack(windows), " and ".join(text.name for text in texts))


def split_windows(windows: np.ndarray, name: str) -> Corpus:
    """Set windows aside for measuring, evenly spread over the texts: eight, or a quarter of a short text.

    Every second one repeats its first half. Copying from the context is what attention does best and what prose asks
    for least: on prose alone the layers that copy (16 and 18 of SmolLM2) look cheap, KL 0.06 and 0.03, where repetition
    shows 0.20 and 0.18; and manuals, code and licences repeat themselves.
    """
    n = min(MEASURED_WINDOWS, max(len(windows) // 4, 1))
    chosen = np.unique(np.linspace(0, len(windows) - 1, n + 2)[1:-1].round().astype(int))
    left = np.setdiff1d(np.arange(len(windows)), chosen)
    measured = windows[chosen].copy()
    half = windows.shape[1] // 2
    measured[1::2, half : 2 * half] = measured[1::2, :half]
    return Corpus(windows[left], measured, name)


def _shipped(name: str) -> Text:
    content = resources.files("gatenorm_export.comparing").joinpath(f"texts/{name}").read_text(encoding="utf-8")
    return Text(f"the shipped {name}", content)
