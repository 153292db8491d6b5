"""tokenizer.json as every client reads it alike.

transformers converts the tokenizer of a GGUF file to one on bytes whose decoder also has the steps of a tokenizer on
pieces: they never find anything, but onnxruntime-genai takes the whole for one on pieces and loses every space.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gatenorm_export.errors import InputError
from gatenorm_export.small_files import read_object

TOKENIZER = "tokenizer.json"

_OF_PIECES = {"ByteFallback", "Fuse", "Replace"}
_READ_BY_GENAI = {"BPE", "Unigram", "WordPiece"}


def readable_tokenizer(path: Path) -> bytes | Path:
    """The file itself, or its bytes without decoder steps that a tokenizer on bytes has no use for.

    Raises:
        InputError: it is no JSON object.
    """
    content = read_object(path)
    decoder = content.get("decoder")
    if _kind(content.get("pre_tokenizer")) != "ByteLevel" or _kind(decoder) != "Sequence":
        return path
    steps = decoder.get("decoders") if isinstance(decoder, dict) else None
    if not isinstance(steps, list) or not steps or _kind(steps[-1]) != "ByteLevel":
        return path
    if not {_kind(step) for step in steps[:-1]} <= _OF_PIECES:
        return path
    return (json.dumps(content | {"decoder": steps[-1]}, indent=2, ensure_ascii=False) + "\n").encode()


def genai_note(path: Path) -> str:
    """What genai cannot do with this tokenizer; empty where it reads it.

    Raises:
        InputError: it is no JSON object.
    """
    kind = _kind(read_object(path).get("model"))
    return (
        ""
        if kind in _READ_BY_GENAI
        else f"it has no tokenizer of the kind {kind or 'that this is'}; feed it token numbers"
    )


def check_tokenizer(path: Path) -> None:
    """Make sure that it is a tokenizer, which the package tokenizers reads where that is installed.

    Raises:
        InputError: it is none.
    """
    model = read_object(path).get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise InputError(f"{path}: is no tokenizer, for it has no model with a vocabulary")
    try:
        from tokenizers import Tokenizer, __version__
    except ImportError:
        return
    try:
        Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Its errors have no type of their own, and where its Rust panics that is no Exception.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: tokenizers {__version__} does not read it ({reason})") from error


def _kind(value: Any) -> str:
    return str(value.get("type", "")) if isinstance(value, dict) else ""
