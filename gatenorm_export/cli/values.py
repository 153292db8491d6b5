"""What an option's value may be, checked as the command line is read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from ``least`` on."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small; give {least} or more")
        return value

    return read


def number(least: float | None = None) -> Callable[[str], float]:
    """The type of an option that takes a finite number, from ``least`` on where there is such a bound."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is no number")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; give {least:g} or more")
        return value

    return read
