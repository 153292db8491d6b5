"""Peak memory of the process, of a GPU, or of torch's allocator, over what was in use before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path
from typing import Any

from gatenorm_export.memory import PROCESS, free_memory, kernel_bytes

_CLEAR = Path("/proc/self/clear_refs")


class ProcessMemory:
    """Resident memory of this process, as Linux counts it: mapped weights count as far as they were read."""

    def __init__(self) -> None:
        self._before: int | None = None

    def available(self) -> int | None:
        """What can be taken without swapping."""
        return free_memory()

    def begin(self) -> None:
        """Set the kernel's high-water mark back to what is resident now.

        Memory that was freed and is still held by the C library goes back first: taken again, it would not show.
        """
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
        self._before = kernel_bytes(PROCESS, "VmRSS:")

    def peak(self) -> int | None:
        """The high-water mark over what was resident at ``begin``."""
        most = kernel_bytes(PROCESS, "VmHWM:")
        return None if most is None or self._before is None else max(most - self._before, 0)


class DeviceMemory:
    """Everything on the GPU, read when ``peak`` is asked: for runtimes that keep what they have taken."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._before = 0

    def available(self) -> int | None:
        """Free bytes on the GPU."""
        return int(self._cuda.mem_get_info()[0])

    def begin(self) -> None:
        """Remember what is free."""
        self._cuda.synchronize()
        self._before = self.available() or 0

    def peak(self) -> int | None:
        """What has been taken since."""
        self._cuda.synchronize()
        return max(self._before - (self.available() or 0), 0)


class AllocatorMemory(DeviceMemory):
    """What torch has handed out on the GPU; what its allocator only holds in reserve does not count."""

    def begin(self) -> None:
        """Set torch's high-water mark back."""
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        self._before = int(self._cuda.memory_allocated())

    def peak(self) -> int | None:
        """torch's high-water mark over what was handed out at ``begin``."""
        self._cuda.synchronize()
        return max(int(self._cuda.max_memory_allocated()) - self._before, 0)
