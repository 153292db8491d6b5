"""Shape inference tried out in a process of its own before it is done here.

onnx propagates the content of small tensors element by element. A graph of a few bytes whose lengths lie makes it fill
all memory or never end, and no call can be stopped from inside. So each graph is tried within limits first.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

from gatenorm_export.errors import InputError

_SECONDS = 5
_MEMORY_BYTES = 3 << 29
_BYTES_PER_SECOND = 1_000_000
"""Room for large graphs: an export of 2,500 nodes, weights apart, has some 2 MB and takes less than a second."""


def check_shapes(graph: Path) -> None:
    """Make sure that shape inference of an ONNX file ends, in bounded memory.

    Raises:
        InputError: it does not.
    """
    size = graph.stat().st_size
    # A file with its weights inside is held twice while it is parsed, and once more to be handed on.
    seconds, memory = _SECONDS + size // _BYTES_PER_SECOND, _MEMORY_BYTES + 4 * size
    worker = _worker()
    assert worker.stdin is not None
    assert worker.stdout is not None
    answer = ""
    try:
        worker.stdin.write(json.dumps([str(graph), seconds, memory]) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except BrokenPipeError:
        # It died of something before; the next call has a new one.
        pass
    if not answer:
        code = worker.wait()
        _worker.cache_clear()
        raise InputError(
            f"{graph}: its shapes cannot be worked out in {seconds} s of the processor and "
            f"{memory / 2**30:.1f} GiB (ended with {code}); lengths in it are no model's, export it again"
        )


@functools.cache
def _worker() -> subprocess.Popen[str]:
    """The process; it ends with this one, whose end of the pipe closes."""
    script = str(Path(__file__).with_name("shape_worker.py"))
    # -P: a file onnx.py in the current folder is not the package.
    return subprocess.Popen([sys.executable, "-P", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
