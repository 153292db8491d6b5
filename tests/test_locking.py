"""Two at once on one output: real processes, of which one works and the other is told by whom it is kept away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gatenorm_export.cli.main import main
from gatenorm_export.errors import BusyError, ExitCode
from gatenorm_export.locking import file_lock, folder_lock, sole_writer

HOLD = """
import sys
from pathlib import Path
from gatenorm_export.locking import sole_writer
with sole_writer([Path(name) for name in sys.argv[1:]], command="gatenorm run somewhere"):
    print("held", flush=True)
    sys.stdin.read()
"""

COUNT = """
import sys, time
from pathlib import Path
from gatenorm_export.locking import folder_lock, sole_writer
counter = Path(sys.argv[1]).parent.parent / "counter"
for _ in range(10):
    with sole_writer([folder_lock(Path(sys.argv[1]))], command="count", wait_seconds=60):
        seen = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(seen + 1))
"""

# `gatenorm run` whose exporter has written half of its files and then takes its time.
SLOW_EXPORT = """
import sys, time
import gatenorm_export.exporting
from gatenorm_export.artifacts import staged_folder
from gatenorm_export.cli.main import main
def export_model(spec, output, **options):
    with staged_folder(output) as staging:
        (staging / "half").write_text("half")
        time.sleep(600)
gatenorm_export.exporting.export_model = export_model
sys.exit(main())
"""


@contextmanager
def held(*locks: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the locks until the block ends."""
    command = [sys.executable, "-c", HOLD, *map(str, locks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of query and key weights alone, which is all that scoring reads."""
    folder = tmp_path_factory.mktemp("model")
    noise = np.random.default_rng(0)
    save_file(
        {
            f"model.layers.{layer}.self_attn.{name}_proj.weight": noise.standard_normal((16, 16)).astype(np.float32)
            for layer in range(3)
            for name in "qk"
        },
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 16, '
        '"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}'
    )
    return folder


def score(model: Path, out: Path, *more: str) -> int:
    return main(["score", str(model), "--drop", "1", "-o", str(out), "--json", "--quiet", *more])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_is_refused_and_told_by_whom(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with held(folder_lock(out)) as holder:
        assert score(model, out) == ExitCode.BUSY
        shown = capfd.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        for word in (str(out), f"process {holder.pid}", os.uname().nodename, "since 20", "gatenorm run somewhere"):
            assert word in shown.err
        assert names(out) == [".gatenorm.lock"]
    assert score(model, out) == 0
    assert names(out) == ["scores.json", "scores.svg"]


def test_a_killed_holder_keeps_nobody_away(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(folder_lock(out)) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (out / ".gatenorm.lock").exists()
        assert score(model, out) == 0
    assert names(out) == ["scores.json", "scores.svg"]


def test_waiting_ends_with_the_other(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with held(folder_lock(out)) as holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdin is not None
        started = time.monotonic()
        assert score(model, out, "--wait", "1") == ExitCode.BUSY
        assert time.monotonic() - started > 1
        pool.submit(lambda: (time.sleep(0.5), holder.stdin.close()))  # type: ignore[union-attr]
        assert score(model, out, "--wait", "60") == 0
    assert "process" in capfd.readouterr().err


def test_files_may_be_written_side_by_side_but_not_into_a_folder_that_is_being_written(tmp_path: Path) -> None:
    a, b = (file_lock(tmp_path / name) for name in ("a.engine", "b.engine"))

    def free(*locks: Path) -> bool:
        try:
            with sole_writer(locks, command="test"):
                return True
        except BusyError:
            return False

    with held(a):
        assert free(b)
        assert not free(a)
        assert not free(folder_lock(tmp_path))
        assert free(folder_lock(tmp_path / "within"))
    with held(folder_lock(tmp_path)):
        assert not free(b)
    assert free(folder_lock(tmp_path))
    with held(file_lock(tmp_path / "bundle")):
        assert not free(file_lock(tmp_path / "bundle"))
    # What the killed ones left keeps nobody away, and goes with the next who writes the same.
    assert free(a, b, folder_lock(tmp_path))


def test_what_a_killed_writer_of_one_file_left_goes_with_the_next_in_that_folder(tmp_path: Path) -> None:
    """His temporary files and no others: not a neighbour's, not those of a name that only looks alike."""
    lefts = [".a.engine.abcd_123.part", ".a.engine.json.abcd_123.part"]
    others = [".b.engine.abcd_123.part", ".a.engine.old.abcd_123.part", ".a.engine.part", "a.engine", ".hidden"]

    def leave(name: str) -> None:
        (tmp_path / ".a.engine.12345678.part").mkdir(exist_ok=True)
        for file in (*lefts, *others, ".a.engine.12345678.part/graph.onnx"):
            (tmp_path / file).touch()
        with held(file_lock(tmp_path / name)):
            pass

    def found() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock")

    for next_lock in (file_lock(tmp_path / "a.engine"), file_lock(tmp_path / "c.engine"), folder_lock(tmp_path)):
        leave("a.engine")
        with sole_writer([next_lock], command="test"):
            assert found() == sorted(others)
        assert not list(tmp_path.glob(".gatenorm.*"))
    # A file of the record's name that is being written for itself is left alone.
    leave("a.engine")
    with held(file_lock(tmp_path / "a.engine.json")), sole_writer([file_lock(tmp_path / "a.engine")], command="test"):
        assert lefts[1] in found()


def test_many_at_once_never_hold_a_folder_together(tmp_path: Path) -> None:
    """Also where the folder and its lock file come and go all the time."""
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "comes" / "and-goes")]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "40"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["counter"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".gatenorm.lock").symlink_to(tmp_path / "precious")
    assert score(model, tmp_path / "out") == ExitCode.OUTPUT
    assert "cannot be written" in capfd.readouterr().err
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_verb_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    assert score(tmp_path / "absent.safetensors", tmp_path / "new" / "deep") == ExitCode.BAD_INPUT
    assert names(tmp_path) == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, ExitCode.INTERRUPTED)])
def test_a_run_that_is_stopped_in_the_middle(
    sent: signal.Signals, code: int, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW_EXPORT, "run", str(model), "--drop", "1", "--out", str(out)]
    arguments = ["run", str(model), "--drop", "2", "--out", str(out), "--json", "--quiet"]
    with subprocess.Popen([*command, "--flavour", "none", "--quiet"]) as first:
        while not list(out.glob("base/.gatenorm.*.part/half")):
            assert first.poll() is None
            time.sleep(0.05)
        assert main(arguments) == ExitCode.BUSY
        assert f"process {first.pid}" in capfd.readouterr().err
        assert main(["prune", str(model), "--layers", "0", "-o", str(out / "base")]) == ExitCode.BUSY
        first.send_signal(sent)
        assert first.wait() == code
    if sent == signal.SIGTERM:
        assert names(out) == ["manifest.json", "scores.json"]
        return
    assert {".gatenorm.lock", "scores.json"} <= {*names(out)}
    # Whatever comes next into that folder finds nothing in its way, and takes away what the killed one left.
    with sole_writer([folder_lock(out / name) for name in ("", "base", "pruned", "engines")], command="test"):
        pass
    assert not list(out.rglob(".*"))
