"""What a sweep is asked for, and where it is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.errors import RefusedError
from gatenorm_export.executing import Executor
from gatenorm_export.repairs import Repair
from gatenorm_export.sweeping.prepare import Subject
from gatenorm_export.sweeping.ranking import Rank

if TYPE_CHECKING:
    from gatenorm_export.calibrating import CorpusRequest

SWEEP_NAME = "sweep.json"


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """What to sweep. ``text`` None is the shipped one; ``despite_failure`` measures what guard calls ruined too."""

    subject: Subject
    out: Path
    drops: tuple[int, ...]
    ranks: tuple[Rank, ...]
    repairs: tuple[Repair, ...]
    calibration: CorpusRequest
    text: Path | None = None
    max_text_tokens: int = 2048
    latency: bool = True
    despite_failure: bool = False
    command: str = ""


def machines_in_words(executor: Executor, *, timed: bool) -> str:
    """The processors that the cells are measured on, which are one kind where they are timed.

    Raises:
        RefusedError: they differ, and ``timed``: a speed-up on one would be held against one on another.
    """
    found = sorted({machine.device for machine in executor.machines()})
    if len(found) > 1 and timed:
        raise RefusedError(
            f"the cells would be timed on machines that differ: {'; '.join(found)}; choose one kind with "
            "--ray-resources, or leave times out with --no-latency"
        )
    return " and ".join(found)
