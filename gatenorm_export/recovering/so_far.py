"""Training so far, in a file: LoRA's weights, AdamW's state, the best weights, and where in the run they are.

Nothing else changes while training: the model's own weights are frozen, no dropout draws numbers, and the order of the
windows follows from the seed. So training that goes on from the file ends in the bits of one that was never
interrupted.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gatenorm_export.artifacts import atomic_file
from gatenorm_export.progress import Progress
from gatenorm_export.records import RecoveryPoint
from gatenorm_export.recovering.student import Student

SAVE_SECONDS = 30.0
"""How often training is saved; what was trained since is lost in an interruption."""

_WRITING_SHARE = 20
"""And at most this share of the time is spent on it: where the disk is slow, it is saved less often."""

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's two means and its count of steps, of each parameter."""


@dataclasses.dataclass
class SoFar:
    """Where a run is. ``steps`` is None while a run of minutes does not know their number; ``since`` are the losses
    since the last look at the held-out part, in nats per token."""

    step: int
    steps: int | None
    best_step: int
    points: list[RecoveryPoint]
    since: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def best_loss(self) -> float:
        """The held-out loss of the step that is kept."""
        return next(point.held_out_loss_nats for point in self.points if point.step == self.best_step)


_SO_FAR = TypeAdapter(SoFar)


class TrainingFile:
    """A safetensors file with the state of one training, which ``key`` tells from those of other inputs or options."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._saved_at, self._pause = time.monotonic(), SAVE_SECONDS

    def save(self, student: Student, optimizer: torch.optim.AdamW, best: list[torch.Tensor], so_far: SoFar) -> None:
        """Write the state, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        start = time.monotonic()
        tensors: dict[str, torch.Tensor] = {}
        for index, (parameter, kept) in enumerate(zip(student.parameters, best, strict=True)):
            tensors |= {f"{index}.now": parameter.detach(), f"{index}.best": kept}
            # A parameter that no loss has reached yet has no state.
            for name, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{index}.{name}"] = value
        metadata = {"kind": "training so far", "key": self._key, "so_far": _SO_FAR.dump_json(so_far).decode()}
        with atomic_file(self._path) as temporary:
            try:
                save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
            except SafetensorError as error:
                raise OSError(str(error)) from error
        self._saved_at = time.monotonic()
        self._pause = max(SAVE_SECONDS, _WRITING_SHARE * (self._saved_at - start))

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved_at >= self._pause

    def restore(
        self, student: Student, optimizer: torch.optim.AdamW, *, progress: Progress
    ) -> tuple[SoFar, list[torch.Tensor]] | None:
        """Put student and optimizer where they were, and tell where that is and what the best weights were.

        None, with nothing changed, where there is no such file, it is damaged, or it is of another training.
        """
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key:
                    progress.say("an interrupted training that was found is of other inputs or options; begun anew")
                    return None
                # Copies: what is read lies in the file, which is replaced.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            so_far = _SO_FAR.validate_json(metadata["so_far"])
            count = range(len(student.parameters))
            now, best = ([tensors[f"{index}.{name}"] for index in count] for name in ("now", "best"))
            _ = so_far.best_loss
        except (OSError, SafetensorError, ValueError, KeyError, StopIteration):
            # Lost work costs time, nothing else.
            return None
        for kept in (now, best):
            if any(a.shape != b.shape for a, b in zip(kept, student.parameters, strict=True)):
                return None
        state: dict[int, dict[str, Any]] = {}
        for index in count:
            moments = {name: tensors[f"{index}.{name}"] for name in _MOMENTS if f"{index}.{name}" in tensors}
            if moments:
                state[index] = moments
        student.restore(now)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return so_far, best
