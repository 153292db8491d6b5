"""The two flavours of TensorRT behind polygraphy, and which of them is installed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from typing import Any, Literal

from gatenorm_export.errors import MissingPartError

FlavourName = Literal["tensorrt", "tensorrt-rtx"]

# Where a flavour's Python bindings may lie. The wheels of TensorRT-RTX install the bindings by themselves as
# tensorrt_rtx_bindings; polygraphy asks for the module tensorrt_rtx, which only a further package would add.
_MODULES: dict[FlavourName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_EXTRAS: dict[FlavourName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "trt-rtx"}


@dataclasses.dataclass(frozen=True)
class Flavour:
    """An installed TensorRT."""

    name: FlavourName
    version: str

    def module(self) -> Any:
        """The bindings, with polygraphy told to use them. polygraphy reads its switch at each use, not at import."""
        import polygraphy.config

        polygraphy.config.USE_TENSORRT_RTX = self.name == "tensorrt-rtx"
        return _bindings(self.name)


def find_flavour(asked: str | None = None) -> Flavour:
    """The flavour that was asked for, or the one that is installed; of both, data-centre TensorRT.

    Raises:
        MissingPartError: it is not installed or does not load; the text names the extras.
    """
    names: tuple[FlavourName, ...] = ("tensorrt", "tensorrt-rtx")
    reasons = []
    for name in names:
        if asked not in (None, name):
            continue
        if not any(importlib.util.find_spec(module) for module in _MODULES[name]):
            continue
        try:
            version = str(_bindings(name).__version__)
            importlib.import_module("polygraphy")
        except Exception as error:
            # Bindings without their libraries fail in several ways, of which ImportError is only one.
            reasons.append(f"{name} does not load: {error}")
            continue
        return Flavour(name, version)
    lacking = f"{asked} is not installed" if asked else "no TensorRT is installed"
    extras = [f'"gatenorm[{_EXTRAS[name]}]"' for name in names if asked in (None, name)]
    brings = " or ".join(reversed(extras)) + (" (trt-rtx builds without a GPU)" if asked != "tensorrt" else "")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise MissingPartError(f"{lacking}{why}; engines need pip install {brings}")


def _bindings(name: FlavourName) -> Any:
    errors: list[str] = []
    for module in _MODULES[name]:
        try:
            bindings = importlib.import_module(module)
        except ImportError as error:
            errors.append(str(error))
            continue
        return sys.modules.setdefault(_MODULES[name][0], bindings)
    raise ImportError("; ".join(errors))
