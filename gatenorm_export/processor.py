"""The processor that this runs on: its name, and how much of it may be used."""

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


def cores() -> int:
    """The cores that this process may run on; a container or ``taskset`` may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_threads() -> int:
    """How many threads may compute: as many as ``OMP_NUM_THREADS`` says, as torch takes it, but no more than cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores()) if asked.isdecimal() and int(asked) > 0 else cores()
