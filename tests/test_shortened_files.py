"""A file that becomes shorter under its mapping ends the command with a line, whichever thread reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_READ = """
import os, sys, threading
from pathlib import Path
from gatenorm_export.checkpoints.ranges import LocalFile, digest_of
from gatenorm_export.cli.bus_errors import bus_errors_told
path = Path(sys.argv[1])
with bus_errors_told():
    data = LocalFile(path).read(0, path.stat().st_size)
    os.truncate(path, 4096)
    read = (lambda: digest_of(data)) if sys.argv[2] == "digested" else lambda: data[::64].astype(float).sum()
    if sys.argv[3] == "here":
        read()
    else:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
print("read on")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there mapped files are told of")
@pytest.mark.parametrize("how", ["digested", "computed"])
@pytest.mark.parametrize("where", ["here", "thread"])
def test_a_file_that_becomes_shorter_ends_the_command_with_a_line(tmp_path: Path, how: str, where: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(8 << 20))
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path), how, where], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"gatenorm: {path}: became shorter while it was read; copy it again\n"
