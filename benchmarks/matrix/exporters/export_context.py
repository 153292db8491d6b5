"""States of mind that torch's exporters need a model, or themselves, to be in."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from benchmarks.matrix.exporters.cannot_export import CannotExport


@contextlib.contextmanager
def forward_of(model: Any, names: list[str], *, use_cache: bool) -> Iterator[None]:
    """Give the model's forward exactly these parameters while it is traced.

    torch matches dynamic_shapes with the signature, and some models take their cache through ``**kwargs``.
    """
    original = model.forward

    def forward(**arguments: Any) -> Any:
        return original(**arguments, **({"use_cache": True} if use_cache else {}))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    model.forward = forward
    before = getattr(model.config, "use_cache", None)
    model.config.use_cache = use_cache
    try:
        yield
    finally:
        model.config.use_cache = before
        del model.forward


@contextlib.contextmanager
def exportable_experts(model: Any) -> Iterator[None]:
    """Let mixtures of experts multiply all their matrices: the grouped product of transformers 5 has no ONNX form."""
    if not getattr(model, "_can_set_experts_implementation", lambda: False)():
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


@contextlib.contextmanager
def export_failures() -> Iterator[None]:
    """Turn torch's long reports of a failed export into the one line that says what failed."""
    try:
        yield
    except CannotExport:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, CannotExport):
            raise cause from None
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise CannotExport(f"{type(cause).__name__}: {' '.join(lines[:2]) or 'no message'}") from error
