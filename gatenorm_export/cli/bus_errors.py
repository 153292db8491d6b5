"""A mapped file that becomes shorter ends the process that reads it with SIGBUS; here it ends with one line as well."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator

from gatenorm_export.errors import ExitCode

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_told = threading.Lock()


@contextlib.contextmanager
def bus_errors_told() -> Iterator[None]:
    """While the block runs, a page that is gone is bad input: a line on stderr, and exit code 3.

    Python's own handlers run between two of its instructions, and a product that cannot read on never gets there; so
    this one is set in C. It is called by the thread that reads, outside of any allocation, and does not return.
    """
    if sys.platform != "linux":
        yield
        return
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    handler = _Handler(_tell)
    before = set_handler(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGBUS, before)


def _tell(_: int) -> None:
    if not _told.acquire(blocking=False):
        # Another thread tells, and ends the process.
        threading.Event().wait()
    # What is not loaded has mapped nothing.
    ranges = sys.modules.get("gatenorm_export.checkpoints.ranges")
    name = ranges.shortened() if ranges is not None else None
    line = f"gatenorm: {name or 'a file'}: became shorter while it was read; copy it again\n"
    os.write(2, line.encode(errors="replace"))
    os._exit(ExitCode.BAD_INPUT)
