"""What an interrupted bench has measured: the rates of the device, each loading, and each point at each loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, model_validator

from gatenorm_export.benching.protocol import Point
from gatenorm_export.benching.timing import Loaded
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.records.base import Part
from gatenorm_export.records.bench import Clocks, Probe


class TimedPoint(Part):
    """Seconds [models, repeats] of one point at one loading, and the clocks after it."""

    seconds: tuple[tuple[float, ...], ...]
    clocks: Clocks

    @model_validator(mode="after")
    def _even(self) -> TimedPoint:
        lengths = {len(row) for row in self.seconds}
        if len(lengths) != 1 or min(lengths) < 2 or min(lengths) % 2:
            raise ValueError("rows of one even length are needed")
        return self

    @property
    def array(self) -> np.ndarray:
        """The seconds as numbers."""
        return np.array(self.seconds)


_LOADED, _POINT = TypeAdapter(tuple[Loaded, ...]), TypeAdapter(TimedPoint)


class KeptTimings:
    """The work of one bench. ``decides`` is everything that decides a figure; ``path`` None keeps nothing.

    ``what`` names a measurement of the bench: that of the pair, or that of the control.
    """

    def __init__(self, path: Path | None = None, *decides: Any) -> None:
        self._work = KeptWork(path, *decides)
        self.n_points = sum(" at loading " in name for name in self._work.names)
        """How many points were found, each counted at each loading."""

    def probe(self, make: Callable[[], Probe]) -> Probe:
        """The device's rates."""
        return self._work.once("probe", TypeAdapter(Probe), make)

    def loaded(self, what: str, loading: int, n_models: int) -> tuple[Loaded, ...] | None:
        """What loading ``n_models`` showed."""
        found = self._work.find(f"{what}, loading {loading}", _LOADED)
        return found if found is not None and len(found) == n_models else None

    def put_loaded(self, what: str, loading: int, found: tuple[Loaded, ...]) -> None:
        """Keep that.

        Raises:
            OutputError: the file cannot be written.
        """
        self._work.keep(f"{what}, loading {loading}", _LOADED, found)

    def point(self, what: str, loading: int, point: Point, n_models: int) -> TimedPoint | None:
        """A point that was timed."""
        found = self._work.find(f"{what}, {point.name} at loading {loading}", _POINT)
        return found if found is not None and len(found.seconds) == n_models else None

    def put_point(self, what: str, loading: int, point: Point, found: TimedPoint) -> None:
        """Keep that.

        Raises:
            OutputError: the file cannot be written.
        """
        self._work.keep(f"{what}, {point.name} at loading {loading}", _POINT, found)
