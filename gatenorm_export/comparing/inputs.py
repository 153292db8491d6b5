"""What quality is judged on, as a user names it."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class QualityInputs:
    """A text for decoders and text encoders, a folder of images, a sound; None is what gatenorm brings along.

    The text is a shipped one; images and sounds are synthetic and seeded.
    """

    text: Path | None = None
    images: Path | None = None
    audio: Path | None = None
    max_text_tokens: int = 2048
