"""Functions that the tests of executors have done somewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gatenorm_export.errors import RefusedError
from gatenorm_export.executing import Call


class OwnRefusal(RefusedError):
    """A class that only this module has."""


def note(call: Call) -> int:
    """Write down who works on it; return how many did before."""
    book = Path(call.arguments["book"])
    before = len(book.read_text().splitlines()) if book.exists() else 0
    with book.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return before


def count(call: Call) -> dict[str, object]:
    """Bytes of each input, and an artifact that is made of them."""
    note(call)
    content = b"".join(call.inputs[name].read_bytes() for name in sorted(call.inputs))
    (call.out / "deep").mkdir()
    (call.out / "deep" / "joined.bin").write_bytes(content)
    (call.out / "size.txt").write_text(str(len(content)))
    return {"bytes": len(content), "third": 1 / 3, "pid": os.getpid()}


def sleep_first(call: Call) -> dict[str, int]:
    """Whoever comes first is meant to be killed."""
    if note(call) == 0:
        time.sleep(120)
    return {"pid": os.getpid()}


def die(call: Call) -> None:
    """Kill every worker."""
    note(call)
    (call.out / "half.bin").write_bytes(b"half")
    os._exit(1)


def refuse(call: Call) -> None:
    """An error of gatenorm's."""
    note(call)
    raise OwnRefusal("layer 3: is not there; name another")


def stumble(call: Call) -> None:
    """A defect."""
    note(call)
    raise ZeroDivisionError("a defect")


def not_json(call: Call) -> object:
    """A value that cannot travel."""
    return {"path": call.inputs}


def overlap(call: Call) -> list[tuple[str, float, float]]:
    """Work side by side with a partner, then time; the spans of both."""
    spans, meeting = [], Path(call.arguments["meeting"])
    for kind, quieting in (("work", call.sharing), ("time", call.alone)):
        with quieting():
            begin = time.monotonic()
            if kind == "work" and call.arguments["partners"]:
                (meeting / str(os.getpid())).touch()
                while len(list(meeting.iterdir())) < 2 and time.monotonic() < begin + 20:
                    time.sleep(0.01)
            time.sleep(0.1)
            spans.append((kind, begin, time.monotonic()))
    return spans
