"""The text that quality is judged on, and its tokens."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np

from gatenorm_export.errors import InputError, needs
from gatenorm_export.framework import load_tokenizer
from gatenorm_export.records import ModelSpec

MINIMUM_TOKENS = 64
_SHIPPED = "the shipped text"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text and its identity."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Digest of the UTF-8 bytes."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def load_text(path: Path | None) -> Text:
    """Read a text file, or the text that gatenorm ships.

    Raises:
        InputError: the file cannot be read, is no UTF-8, or is empty.
    """
    if path is None:
        shipped = resources.files("gatenorm_export.comparing").joinpath("texts/default.txt")
        return Text(_SHIPPED, shipped.read_text(encoding="utf-8"))
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: the text cannot be read ({error.strerror}); check --text") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from error
    if not content.strip():
        raise InputError(f"{path}: the text is empty; a few kilobytes of any prose will do")
    return Text(path.name, content)


def random_tokens(vocabulary: int, n: int, seed: int = 0) -> tuple[Text, np.ndarray]:
    """Seeded random tokens [n] and a name that says so: what is left for a model that has no tokenizer.

    KL and agreement still compare the two graphs on them; their perplexity says nothing about language.
    """
    tokens = np.random.default_rng(seed).integers(0, vocabulary, size=n)
    return Text("random tokens (the model has no tokenizer)", " ".join(map(str, tokens))), tokens


def tokenize(text: Text, folder: Path, spec: ModelSpec | None, *, limit: int) -> np.ndarray | None:
    """The first ``limit`` tokens of a text, [n], by the tokenizer beside the graph or else the checkpoint's.

    None where there is no tokenizer.

    Raises:
        InputError: the text is too short to judge anything by.
        MissingPartError: transformers is not installed.
    """
    with needs("export", "tokenizing"):
        tokenizer = load_tokenizer(folder, spec)
    if tokenizer is None:
        return None
    # Some tokenizers warn that a text is longer than the model's context; it is cut into windows afterwards.
    tokens = np.array(tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"][:limit], np.int64)
    if len(tokens) < MINIMUM_TOKENS:
        raise InputError(f"{text.name}: {len(tokens)} tokens are too few to judge by; give at least {MINIMUM_TOKENS}")
    return tokens
