"""What a runtime throws in the middle of a measurement, as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gatenorm_export.errors import GateNormError, RefusedError

_MEMORY = ("out of memory", "failed to allocate", "bad allocation", "bad_alloc", "not enough memory", "can't allocate")


class NoMemoryError(Exception):
    """A point does not fit the device's memory; the others may."""


@contextlib.contextmanager
def one_line(backend: str, what: str) -> Iterator[None]:
    """Turn whatever a runtime throws inside the block into one line that says where it was.

    A GPU that is lost in the middle, a driver that is replaced, an operator without a kernel: each runtime has its own
    types for these, and all of them end the measurement.

    Raises:
        NoMemoryError: memory ran out.
        RefusedError: anything else that is no condition of ours.
    """
    try:
        yield
    except (GateNormError, NoMemoryError):
        raise
    except Exception as error:
        first = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())[:300]
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY):
            raise NoMemoryError(f"does not fit the memory ({first})") from error
        raise RefusedError(
            f"{backend} failed at {what} ({type(error).__name__}: {first}); nothing was written, measure again when "
            "the device is well"
        ) from error
