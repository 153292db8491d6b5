"""transformers' reading of GGUF files, without doing the same work again and again."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def gguf_read_once() -> Iterator[None]:
    """While the block runs, a GGUF file's header is parsed once, and names of tensors are made once for each layout.

    transformers 4.57 parses the header, vocabulary and all, anew for the config, the weights and the tokenizer, and
    makes the table of names for every part of the model: of a model of 135 million parameters that was most of the time
    of loading it. The files must not change meanwhile.
    """
    try:
        import gguf
    except ImportError:
        yield
        return
    # The package has no types, and whoever imports from it inside a function gets what is there now.
    package: Any = gguf
    plain = {name: getattr(package, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in plain.items():
        # In a block within another one the outer one's results serve.
        setattr(package, name, function if hasattr(function, "cache_clear") else functools.cache(function))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(package, name, function)
