"""What Ray's own threads print on stdout, where results belong, said as talk instead."""

from __future__ import annotations

import re
import sys
import threading
from typing import Any

from gatenorm_export.progress import Progress

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 160


class Aside:
    """Stands in for ``sys.stdout``: words of Ray's threads become talk, everything else goes where it went before."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._stdout = progress, sys.stdout

    def __enter__(self) -> Aside:
        sys.stdout = self
        return self

    def __exit__(self, *_: object) -> None:
        # Somebody may have put his own in its place since; that is not ours to undo.
        if sys.stdout is self:
            sys.stdout = self._stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)

    def write(self, text: str) -> int:
        """Print or say it."""
        if not threading.current_thread().name.startswith("ray_"):
            return self._stdout.write(text)
        said = " ".join(_COLOUR.sub("", text).replace("(raylet)", " ").split())
        if said:
            self._progress.say(f"Ray: {said if len(said) <= _LONGEST else said[: _LONGEST - 3] + '...'}")
        return len(text)
