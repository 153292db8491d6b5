"""What a user asks of a comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.comparing.inputs import QualityInputs
from gatenorm_export.comparing.thresholds import Limits, refuse_limits
from gatenorm_export.errors import RefusedError
from gatenorm_export.kinds import ModelKind


@dataclasses.dataclass(frozen=True)
class ComparisonRequest:
    """What to measure, and the limits that must hold. ``text`` None is the text that gatenorm ships.

    ``images`` and ``audio`` are for vision and speech; None are synthetic ones.
    """

    text: Path | None
    max_text_tokens: int
    latency: bool
    limits: Limits
    command: str
    images: Path | None = None
    audio: Path | None = None

    @property
    def inputs(self) -> QualityInputs:
        """What quality is judged on."""
        return QualityInputs(self.text, self.images, self.audio, self.max_text_tokens)

    def decides(self) -> dict[str, Any]:
        """Everything here that decides the result, in JSON types."""
        images = sorted(self.images.iterdir()) if self.images is not None and self.images.is_dir() else []
        return {
            "text": sha256_of(self.text) if self.text is not None else None,
            "images": [sha256_of(path) for path in images if path.is_file()],
            "audio": sha256_of(self.audio) if self.audio is not None else None,
            "max_text_tokens": self.max_text_tokens,
            "latency": self.latency,
            "limits": dataclasses.asdict(self.limits),
        }

    def check(self, kind: ModelKind) -> None:
        """Refuse, before any work, what means nothing for this kind of model.

        Raises:
            RefusedError: a limit or an input belongs to another kind; the text names it.
        """
        refuse_limits(self.limits, kind.measure)
        for option, value, kinds in (
            ("--text", self.text, ("decoder", "encoder")),
            ("--images", self.images, ("vision",)),
            ("--audio", self.audio, ("speech",)),
        ):
            if value is not None and kind.kind.name not in kinds:
                raise RefusedError(f"{option} is for models that take it: {' and '.join(kinds)}; leave it out here")
