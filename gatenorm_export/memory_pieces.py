"""Free memory that lies in small pieces, kept aside while models are loaded whose speed is to be compared.

Linux hands out the smallest pieces first. A model that gets them is slower by a few per cent than one in long runs of
pages, and differently so at each loading: on one machine two sessions of one file differed by up to 7 %, and by 1 %
with the pieces kept aside, which is how memory is on a machine that was just started.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import time
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.memory import free_memory, kernel_bytes

_BUDDIES, _MACHINE = Path("/proc/buddyinfo"), Path("/proc/meminfo")

_LONG = 2 << 20
"""A run of pages that is as good as any: that of a large page on x86 and ARM."""

_SMALL = 256 << 20
"""A model of less is not worth the seconds."""

_AT_ONCE = 64 << 20

_MOST_SECONDS = 20.0
"""For taking them, at some gigabytes a second: a large server may have a hundred in pieces."""

_POPULATE = 23
"""MADV_POPULATE_WRITE of Linux 5.14 and later, which Python has no name for."""


def bytes_in_pieces() -> int:
    """Free bytes in runs of under 2 MB; 0 where the system does not tell."""
    try:
        zones = [line.split()[4:] for line in _BUDDIES.read_text().splitlines()]
        counts = [[int(count) for count in zone] for zone in zones]
    except (OSError, ValueError):
        return 0
    sizes = [mmap.PAGESIZE << order for order in range(max(map(len, counts), default=0))]
    return sum(n * size for zone in counts for n, size in zip(zone, sizes, strict=False) if size < _LONG)


def give_back() -> None:
    """Return to the system what was freed and is still held by the C library."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def pieces_kept_aside(needed: int) -> Iterator[int]:
    """Hold the pieces while the block runs, which needs ``needed`` bytes itself; yields how many could not be held.

    No more is taken than leaves ``needed`` bytes free, so that nothing cached is pushed out; for small models, nothing.
    """
    if needed < _SMALL:
        yield 0
        return
    give_back()
    pieces = bytes_in_pieces()
    free = min(kernel_bytes(_MACHINE, "MemFree:") or 0, free_memory() or 0)
    room = max(free - needed, 0)
    held: list[mmap.mmap] = []
    end = time.monotonic() + _MOST_SECONDS
    try:
        while len(held) * _AT_ONCE < min(pieces, room - _AT_ONCE) and time.monotonic() < end:
            held.append(_taken(_AT_ONCE))
        yield max(pieces - len(held) * _AT_ONCE, 0)
    finally:
        for block in held:
            block.close()


def _taken(size: int) -> mmap.mmap:
    """``size`` bytes whose pages are there, small ones."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        block.madvise(mmap.MADV_NOHUGEPAGE)
    try:
        block.madvise(_POPULATE)
    except OSError:
        block[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
    return block
