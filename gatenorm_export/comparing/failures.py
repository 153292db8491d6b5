"""Graphs that load and then fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gatenorm_export.errors import RefusedError


@contextlib.contextmanager
def runtime_failures(graphs: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises while it runs a graph into one line that names ``graphs``.

    Raises:
        RefusedError: a graph failed.
    """
    try:
        yield
    except Exception as error:
        # ONNX Runtime's exceptions have no base of their own.
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise RefusedError(f"{graphs}: loads, but fails on inputs that the model takes ({first})") from error
