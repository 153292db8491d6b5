"""What the system says of memory: how much is free, and figures of a process."""

from __future__ import annotations

from pathlib import Path

_MACHINE, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/status")
"""What Linux says of this process. Its VmHWM is the peak; getrusage's counts from before the program was started, in
the memory of the parent."""


def free_memory() -> int | None:
    """Bytes that a new process can have: of the machine, and of the container's limit; None where nothing tells."""
    found = [value for value in (kernel_bytes(_MACHINE, "MemAvailable:"), _container()) if value is not None]
    return min(found) if found else None


def kernel_bytes(path: Path, name: str) -> int | None:
    """A line such as ``VmRSS:   1234 kB`` of a file of the kernel's, in bytes; None where it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


def _container() -> int | None:
    """What a control group leaves; its own file caches can be dropped, so they do not count as used."""
    for limit, used, statistics, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            highest = (_GROUP / limit).read_text().strip()
            if not highest.isdigit():
                continue
            lines = (line.split() for line in (_GROUP / statistics).read_text().splitlines())
            droppable = next((int(value) for name, value in lines if name == cache), 0)
            return max(int(highest) - int((_GROUP / used).read_text()) + droppable, 0)
        except (OSError, ValueError):
            continue
    return None
