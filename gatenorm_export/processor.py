"""The processor that this runs on, by its name."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def device_name() -> str:
    """The processor and how many of its threads there are."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} threads, {platform.system()} {platform.machine()}"
