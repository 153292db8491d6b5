"""Targets that do what must not happen: the run is held against them, so that finding nothing means something."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.inputs import OUT, OUTSIDE
from benchmarks.fuzz.mutators.pickles import CANARY
from gatenorm_export.errors import InputError


def _outside(root: Path) -> int:
    return len(Path("/etc/hostname").read_bytes()) * 0


def _native(root: Path) -> int:
    """Opened behind Python's back."""
    ctypes.CDLL(None).open(os.fsencode(root / OUTSIDE / "secret.bin"), os.O_RDONLY)
    return 0


def _process(root: Path) -> int:
    return subprocess.call([sys.executable, "-c", "pass"])


def _code(root: Path) -> int:
    handle = ctypes.CDLL(None).creat(os.fsencode(root / CANARY), 0o600)
    os.close(handle)
    return 0


def _memory(root: Path) -> int:
    return len(bytearray(1 << 33)) * 0


def _hang(root: Path) -> int:
    threading.Event().wait()
    return 0


def _crash(root: Path) -> int:
    return int(ctypes.string_at(0)[0])


def _exception(root: Path) -> int:
    return [][0]


def _half(root: Path) -> int:
    (root / OUT / "model.onnx").write_bytes(b"half")
    raise InputError(f"{root}: refused too late")


def _two_lines(root: Path) -> int:
    return 3


def _write(root: Path) -> int:
    (root / "written").write_bytes(b"")
    return 0


BROKEN_TARGETS: dict[str, Callable[[Path], int]] = {
    "broken: outside": _outside,
    "broken: native": _native,
    "broken: process": _process,
    "broken: code": _code,
    "broken: memory": _memory,
    "broken: hang": _hang,
    "broken: crash": _crash,
    "broken: exception": _exception,
    "broken: half": _half,
    "broken: two lines": _two_lines,
    "broken: write": _write,
}
"""By the name that the test of the run calls them; no seed does."""
