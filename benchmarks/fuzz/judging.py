"""What came of a case: still valid, refused in one clear line, or a defect."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz.inputs import IN, OUT, Input
from benchmarks.fuzz.sandbox import Sandbox
from benchmarks.fuzz.targets import TARGETS

LONGEST_MESSAGE = 1000
# Bad input; a package is missing; refused; the output cannot be written.
_REFUSALS = {3, 4, 5, 6}
_TOUCHED = 13


@dataclass(frozen=True)
class Verdict:
    """One case. ``kind`` is ok, refused, or the kind of defect; ``detail`` the message, or where it went wrong."""

    number: int
    seed: str
    target: str
    edits: tuple[str, ...]
    kind: str
    detail: str
    seconds: float

    @property
    def defect(self) -> bool:
        """Whether this must not happen."""
        return self.kind not in {"ok", "refused"}


def judge(number: int, made: Input, sandbox: Sandbox) -> Verdict:
    """Write an input, run its target, and say what came of it."""
    for folder in (IN, OUT):
        shutil.rmtree(sandbox.root / folder, ignore_errors=True)
        (sandbox.root / folder).mkdir()
    made.write(sandbox.root)
    start = time.perf_counter()
    kind, detail = _run(made, sandbox)
    seconds = time.perf_counter() - start
    return Verdict(number, made.seed, made.target, tuple(made.edits), kind, detail, seconds)


def _run(made: Input, sandbox: Sandbox) -> tuple[str, str]:
    from gatenorm_export.errors import GateNormError

    kind, detail = "ok", ""
    os.chdir(sandbox.root)
    with _captured() as (out, complaints):
        sandbox.begin()
        try:
            code = TARGETS[made.target](sandbox.root)
            if code in _REFUSALS or (code == _TOUCHED and not out.buffer.getvalue()):  # type: ignore[attr-defined]
                kind = "refused"
            elif code == _TOUCHED:
                # Verifying tells what it found as its result.
                return "refused", "touched"
            elif code:
                kind, detail = "exit code", str(code)
        except GateNormError as error:
            kind = "refused"
            complaints.write(f"gatenorm: {' '.join(str(error).split())}\n")
        except MemoryError:
            kind, detail = "memory", _where()
        except BaseException as error:
            kind, detail = "exception", f"{type(error).__name__}: {str(error)[:200]} at {_where()}"
        finally:
            forbidden = sandbox.end()
        complaints.flush()
        said = complaints.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    if forbidden:
        return "forbidden", "; ".join(forbidden)[:400]
    left = [path.name for path in (sandbox.root / OUT).rglob("*")] if kind != "ok" else []
    if left and kind == "refused":
        return "half-written", f"{', '.join(left[:5])} after {said[-200:]}"
    return _refusal(made, said, sandbox.root) if kind == "refused" else (kind, detail)


def _refusal(made: Input, said: str, root: Path) -> tuple[str, str]:
    """A refusal is one line that names a file of the input, in characters that can be read."""
    lines = [line for line in said.splitlines() if line.startswith("gatenorm: ")]
    message = lines[-1].removeprefix("gatenorm: ") if lines else ""
    if len(lines) != 1 or not message:
        return "no clear line", said[-300:]
    if len(message) > LONGEST_MESSAGE:
        return "endless message", f"{len(message)} characters: {message[:200]}"
    if not message.isprintable():
        return "unprintable message", repr(message[:300])
    names = {str(root / IN), *made.files, *made.specials}
    if "pip install" not in message and not any(name in message for name in names):
        return "names no file", message[:300]
    return "refused", message.replace(str(root / IN), "IN")[:300]


def _where() -> str:
    """The innermost lines of our own, and the innermost of all."""
    import sys

    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "gatenorm_export" in frame.filename or "graph_passes" in frame.filename]
    chosen = [*ours[-2:], *(frames[-1:] if frames and frames[-1:] != ours[-1:] else ())]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(chosen))


@contextlib.contextmanager
def _captured() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Stdout as strict as a pipe's in UTF-8, and stderr as Python makes it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err
