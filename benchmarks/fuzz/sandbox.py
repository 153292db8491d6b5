"""What a case may do: files of its own folder and of the installed packages, no process, no socket, bounded memory.

Python reports opens, processes and sockets to an audit hook. Native code does not, so the kernel watches the files
outside that hostile names lead to.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fuzz.inputs import IN, OUT, OUTSIDE, SECRETS
from benchmarks.fuzz.mutators.pickles import CANARY

MEMORY_BYTES = 512 << 20
"""Address space that one case may take beyond what the process had before."""

_FORBIDDEN = (
    *(
        "subprocess.",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "os.fork",
        "os.kill",
        "pty.",
    ),
    *(
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "socket.sendto",
        "urllib.",
        "http.",
        "ftplib.",
        "smtplib.",
    ),
    *("webbrowser.", "shutil.chown", "os.chown", "os.putenv", "code.__new__"),
)
_WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
_LISTS = ("os.listdir", "os.scandir", "glob.glob")
_IN_OPEN, _IN_ACCESS, _IN_MODIFY = 0x20, 0x1, 0x2


class Sandbox:
    """Watches what one case does below ``root``. One to a process: an audit hook stays for good."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._readable = _installed()
        self._watching = False
        self._busy = False
        self._seen: list[str] = []
        self._make_outside()
        self._kernel = _Watch([self.root / OUTSIDE, *(self.root / OUTSIDE / name for name in SECRETS)])
        sys.addaudithook(self._audit)

    def _make_outside(self) -> None:
        (self.root / OUTSIDE).mkdir(parents=True, exist_ok=True)
        for name in SECRETS:
            (self.root / OUTSIDE / name).write_bytes(b"{}" * 4096)

    def begin(self) -> None:
        """Watch from here on."""
        self._seen.clear()
        self._kernel.drain()
        _limit_memory(MEMORY_BYTES)
        self._watching = True

    def end(self) -> list[str]:
        """Stop watching; what was done that may not be."""
        self._watching = False
        _limit_memory(None)
        seen = [*self._seen, *(f"opened {name} outside" for name in self._kernel.drain())]
        if (self.root / CANARY).exists():
            (self.root / CANARY).unlink()
            seen.append("ran code of a pickle")
        return list(dict.fromkeys(seen))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching or self._busy:
            return
        self._busy = True
        try:
            self._judge(event, arguments)
        finally:
            self._busy = False

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and str(arguments[1][-1]).endswith("gatenorm_export/shape_worker.py"):
            return
        if event.startswith(_FORBIDDEN):
            self._seen.append(f"{event} {str(arguments)[:80]}")
            raise PermissionError(f"{event} is not allowed in a fuzz run")
        if event == "open" and sys._getframe(2).f_code.co_name.startswith("_rmtree_safe_fd"):
            # Names relative to a folder that Python does not tell; the tree was looked at as a whole.
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, flags = os.fsdecode(arguments[0]), arguments[2]
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            self._look(path, "written" if writes else "read", writes=writes)
        elif event in _WRITES and isinstance(arguments[0], str | bytes):
            folder = arguments[-1] if type(arguments[-1]) is int and len(arguments) > 1 else -1
            place = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path()
            self._look(str(place / os.fsdecode(arguments[0])), event, writes=True)
        elif event == "shutil.rmtree":
            self._look(os.fsdecode(arguments[0]), event, writes=True)
        elif event in _LISTS and isinstance(arguments[0], str | bytes):
            self._look(os.fsdecode(arguments[0]), event, writes=False)

    def _look(self, path: str, what: str, *, writes: bool) -> None:
        real = os.path.realpath(path)
        # A run's own report and pruned graph go to the folder for results.
        own = (str(self.root / OUT),) if writes else (str(self.root / IN), str(self.root / OUT))
        if any(real == folder or real.startswith(folder + os.sep) for folder in own):
            return
        if real == "/dev/null" or (not writes and real.startswith(self._readable)):
            return
        # Python looks for packages in every entry of its path, which may be a finder's name instead of a folder.
        if not writes and (path in sys.path or path.startswith("__editable__")):
            return
        self._seen.append(f"{what}: {path}")


def _installed() -> tuple[str, ...]:
    """Where Python, its packages and this repository's sources lie."""
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(__file__).parents[2]), "/usr/lib", "/usr/share"}
    places |= {"/lib", "/etc/localtime", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/proc/self/status"}
    places |= {f"/proc/{os.getpid()}/", "/proc/meminfo", "/proc/cpuinfo", "/dev/urandom"}
    return tuple(sorted({*places, *(os.path.realpath(place) for place in places if not place.startswith("/proc"))}))


def address_space() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _limit_memory(more: int | None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = resource.RLIM_INFINITY if more is None else address_space() + more
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _Watch:
    """The kernel's word on who opens a few files, by inotify."""

    def __init__(self, paths: list[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _IN_OPEN | _IN_ACCESS | _IN_MODIFY
        self._names = {self._libc.inotify_add_watch(self._handle, os.fsencode(path), mask): path.name for path in paths}

    def drain(self) -> list[str]:
        """Names of the files that were opened since the last call."""
        try:
            events = os.read(self._handle, 1 << 16)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at + 16 <= len(events):
            watch, _, _, length = struct.unpack_from("iIII", events, at)
            found.append(self._names.get(watch, "a file"))
            at += 16 + length
        return list(dict.fromkeys(found))


def make_root() -> Path:
    """A folder for the cases of one process; in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="gatenorm-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
