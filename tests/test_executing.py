"""Executors: the same results and errors in this process and on two real Ray workers, one of which is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from killing import kill_worker
from model_zoo import row

from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, RefusedError
from gatenorm_export.executing import (
    Executor,
    LocalExecutor,
    Outcome,
    Remembering,
    Resources,
    Task,
    input_file,
    open_executor,
    parse_resources,
    place_artifact,
)
from gatenorm_export.records import SweepReport


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executor]:
    if request.param == "ray":
        request.getfixturevalue("cluster")
    with open_executor(request.param, tmp_path / "store") as executor:
        yield executor


@pytest.fixture
def on_ray(cluster: Path, tmp_path: Path) -> Iterator[Executor]:
    with open_executor("ray", tmp_path / "store") as executor:
        yield executor


def task(function: str, tmp_path: Path, *files: Path, name: str = "a task", **arguments: object) -> Task:
    book = tmp_path / f"{function}.txt"
    inputs = tuple(input_file(file) for file in files)
    return Task(name, f"executing_tasks:{function}", {"book": str(book), **arguments}, inputs)


def only(executor: Executor, *tasks: Task) -> Outcome:
    for each in tasks:
        executor.submit(each)
    (outcome,) = executor.finished()
    return outcome


def pids(tmp_path: Path, function: str) -> list[int]:
    book = tmp_path / f"{function}.txt"
    return [int(line) for line in book.read_text().split()] if book.exists() else []


def test_values_and_artifacts(executor: Executor, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"first ")
    (tmp_path / "b.bin").write_bytes(b"second")
    outcome = only(executor, task("count", tmp_path, tmp_path / "a.bin", tmp_path / "b.bin"))
    value = outcome.result()
    assert (value["bytes"], value["third"]) == (12, 1 / 3)
    assert (value["pid"] == os.getpid()) == executor.in_process
    assert [artifact.name for artifact in outcome.artifacts] == ["deep/joined.bin", "size.txt"]
    joined = outcome.artifacts[0]
    assert joined.sha256 == hashlib.sha256(b"first second").hexdigest()
    place = executor.artifact(joined)
    place_artifact(place, tmp_path / "mine" / "joined.bin")
    assert (tmp_path / "mine" / "joined.bin").read_bytes() == b"first second"
    assert {path.name for path in (tmp_path / "store").iterdir()} == {file.sha256 for file in outcome.artifacts}
    place.write_bytes(b"first secone")
    with pytest.raises(InputError, match=r"deep/joined.bin is gone or damaged; start again"):
        executor.artifact(joined)


def test_errors_come_back_as_they_are(executor: Executor, tmp_path: Path) -> None:
    outcome = only(executor, task("refuse", tmp_path))
    assert isinstance(outcome.error, RefusedError)
    assert outcome.error.exit_code == ExitCode.REFUSED
    with pytest.raises(RefusedError, match=r"^layer 3: is not there; name another$"):
        outcome.result()
    assert not outcome.lost
    # Trying again would change nothing.
    assert len(pids(tmp_path, "refuse")) == 1
    absent = only(executor, Task("absent", "executing_tasks:absent", {}))
    assert isinstance(absent.error, InputError)
    assert "executing_tasks:absent: cannot be found where the task runs" in str(absent.error)
    executor.submit(task("stumble", tmp_path))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        list(executor.finished())
    assert len(pids(tmp_path, "stumble")) == 1
    (tmp_path / "a.bin").write_bytes(b"first")
    executor.submit(task("not_json", tmp_path, tmp_path / "a.bin"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        list(executor.finished())


def test_an_input_that_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"first")
    changed = task("count", tmp_path, tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"other")
    outcome = only(LocalExecutor(tmp_path / "store"), changed)
    assert isinstance(outcome.error, InputError)
    assert "a.bin: is gone or was changed while a task waited" in str(outcome.error)
    assert pids(tmp_path, "count") == []
    with pytest.raises(InputError, match="must be relative"):
        input_file(tmp_path / "a.bin", "../a.bin")


def test_files_that_a_worker_does_not_see_are_sent(
    on_ray: Executor, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path through the driver's own file handle is nobody else's; the file takes several pieces."""
    monkeypatch.setattr("gatenorm_export.executing.worker.CHUNK_BYTES", 1000)
    content = np.random.default_rng(0).bytes(2500)
    (tmp_path / "hidden.bin").write_bytes(content)
    with (tmp_path / "hidden.bin").open("rb") as file:
        hidden = input_file(Path(f"/proc/self/fd/{file.fileno()}"), "below/hidden.bin")
        seen = input_file(tmp_path / "hidden.bin", "seen.bin")
        sent = Task("a task", "executing_tasks:count", {"book": str(tmp_path / "count.txt")}, (hidden, seen))
        outcome = only(on_ray, sent)
        assert outcome.result()["bytes"] == 5000
        assert on_ray.artifact(outcome.artifacts[0]).read_bytes() == content * 2
        # One folder for both, since they may look for each other. Damaged there, it is sent again and not used.
        (there,) = cluster.iterdir()
        assert sorted(path.relative_to(there).as_posix() for path in there.rglob("*.bin")) == [
            "below/hidden.bin",
            "seen.bin",
        ]
        (there / "below" / "hidden.bin").write_bytes(content[::-1])
        again = only(on_ray, Task("again", sent.function, sent.arguments, sent.inputs))
        assert again.artifacts == outcome.artifacts
    assert len(pids(tmp_path, "count")) == 2


def test_a_killed_workers_task_is_done_by_another(on_ray: Executor, tmp_path: Path) -> None:
    on_ray.submit(task("sleep_first", tmp_path))
    deadline = time.monotonic() + 30
    while not pids(tmp_path, "sleep_first"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (first,) = pids(tmp_path, "sleep_first")
    os.kill(first, signal.SIGKILL)
    (outcome,) = on_ray.finished()
    _, second = pids(tmp_path, "sleep_first")
    assert outcome.result() == {"pid": second}
    assert second not in {first, os.getpid()}


def test_a_task_that_kills_every_worker_is_given_up(cluster: Path, tmp_path: Path) -> None:
    from gatenorm_export.executing.ray_cluster import RayExecutor

    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob(".gatenorm-task-*"))
    executor = RayExecutor(tmp_path, retries=1)
    outcome = only(executor, task("die", tmp_path))
    assert outcome.lost
    assert len(pids(tmp_path, "die")) == 2
    with pytest.raises(RefusedError, match=r"^a task: not done, .* after 2 tries at most: its process died \(.*"):
        outcome.result()
    # What they left half-written goes with the next task, once it is old enough to be nobody's.
    left = set(temporary.glob(".gatenorm-task-*")) - before
    assert len(left) == 2
    for folder in left:
        os.utime(folder, (0, 0))
    only(executor, task("note", tmp_path))
    assert not left & set(temporary.glob(".gatenorm-task-*"))
    executor.close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("NodeDiedError", "its machine left the cluster"),
        ("WorkerCrashedError", "Ray does not know why"),
        ("OutOfMemoryError", "let fewer tasks share a machine"),
        ("ObjectLostError", "Ray could not have it done"),
    ],
)
def test_of_a_lost_task_only_what_is_known_is_told(kind: str, said: str) -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="ray is not installed: pip install gatenorm[ray]")
    from gatenorm_export.executing.ray_cluster import _lost

    arguments = ("ab", None, "") if kind == "ObjectLostError" else ("a word",)
    told = _lost(getattr(exceptions, kind)(*arguments), 4)
    assert said in told
    assert ("memory ran out" in told) is (kind == "OutOfMemoryError")


def test_what_was_done_is_not_done_again(executor: Executor, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"first")
    counting, folder = task("count", tmp_path, tmp_path / "a.bin"), tmp_path / "store"
    remembering = Remembering(executor, folder)
    remembering.submit(counting)
    remembering.submit(counting)
    first, second = remembering.finished()
    assert (first.reused, second.reused) == (False, True)
    # Another process, later.
    later = only(Remembering(executor, folder), counting)
    assert later.reused
    assert first.value == second.value == later.value
    assert first.artifacts == second.artifacts == later.artifacts
    assert len(pids(tmp_path, "count")) == 1
    # Other arguments, inputs or a damaged artifact: done anew.
    for again in range(2, 5):
        if again == 2:
            counting = task("count", tmp_path, tmp_path / "a.bin", other=1)
        elif again == 3:
            (tmp_path / "a.bin").write_bytes(b"other")
            counting = task("count", tmp_path, tmp_path / "a.bin", other=1)
        else:
            (folder / later.artifacts[0].sha256).write_bytes(b"?")
        later = only(Remembering(executor, folder), counting)
        assert not later.reused
        assert len(pids(tmp_path, "count")) == again
    # What failed is tried again.
    for again in (1, 2):
        assert only(Remembering(executor, folder), task("refuse", tmp_path)).error is not None
        assert len(pids(tmp_path, "refuse")) == again


def test_nothing_runs_beside_what_is_timed(on_ray: Executor, tmp_path: Path) -> None:
    for index in range(4):
        arguments = {"meeting": str(tmp_path), "partners": index < 2}
        on_ray.submit(Task(f"task {index}", "executing_tasks:overlap", arguments))
    spans = [(outcome.task.name, *span) for outcome in on_ray.finished() for span in outcome.result()]
    assert len(spans) == 8
    for timed in (span for span in spans if span[1] == "time"):
        for other in spans:
            assert other is timed or other[3] <= timed[2] or timed[3] <= other[2], (timed, other)
    # Work goes on side by side: the first two met each other in it.
    works = [span for span in spans if span[1] == "work" and span[0] in {"task 0", "task 1"}]
    assert all(end - begin < 15 for _, _, begin, end in works)
    assert max(begin for _, _, begin, _ in works) < min(end for _, _, _, end in works)


def test_what_no_machine_has_is_refused(on_ray: Executor, tmp_path: Path) -> None:
    for wanted, named in (
        (Resources(gpus=1, accelerator="H100"), "CPU 1, GPU 1, accelerator_type:H100 0.001"),
        (Resources(cpus=3), "CPU 3"),
        (Resources(custom={"rack": 2}), "CPU 1, rack 2"),
    ):
        with pytest.raises(RefusedError, match=f"no machine of the Ray cluster has {named} together; the most .*CPU 2"):
            on_ray.submit(Task("large", "executing_tasks:note", {}, resources=wanted))
    assert len(on_ray.machines()) == 1


def test_resources_as_they_are_written() -> None:
    found = parse_resources("cpus=4, gpus=0.5,accelerator=A100-40G,memory=1.5,rack=2".replace("1.5", "3"))
    assert found == Resources(4, 0.5, "A100-40G", 3 * 2**30, {"rack": 2})
    for wrong in ("cpus", "cpus=0", "gpus=-1", "cpus=x", "gpus=1.5", "cpus=1,cpus=2", "accelerator=", "", "memory=nan"):
        with pytest.raises(InputError, match="--ray-resources"):
            parse_resources(wrong)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's graph and texts."""
    from gatenorm_export.exporting import export_model
    from gatenorm_export.sources import resolve_model

    folder = tmp_path_factory.mktemp("sweep")
    row("llama-gqa").save(folder / "model")
    export_model(resolve_model(str(folder / "model")), folder / "base")
    for name, n in (("calibration", 1100), ("text", 300)):
        words = np.random.default_rng(n).integers(4, 64, n)
        (folder / f"{name}.txt").write_text(" ".join(f"w{word}" for word in words))
    return folder


def sweep(place: Path, out: Path, *rest: str) -> list[str]:
    texts = ["--text", place / "text.txt", "--calibration-text", place / "calibration.txt", "--no-shipped-text"]
    return [*map(str, ["sweep", place / "base", "-o", out, *texts]), "-q", *rest]


def test_a_sweep_on_ray_is_the_same(
    cluster: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    what = ["--drops", "0,2,9", "--rank", "last,cosine,guard", "--repair", "none,bias", "--no-latency"]
    assert main([*sweep(place, tmp_path / "local"), *what]) == 0
    # Not a cell of it may be measured in this process.
    monkeypatch.setattr("gatenorm_export.sweeping.cells.Bench", None)
    assert main([*sweep(place, tmp_path / "ray"), *what, "--executor", "ray"]) == 0
    here, there = (SweepReport.load(tmp_path / name / "sweep.json") for name in ("local", "ray"))
    assert there.orders != ()
    assert [order.layers for order in there.orders] == [order.layers for order in here.orders]
    assert len(there.cells) == 18
    for ours, theirs in zip(here.cells, there.cells, strict=True):
        assert (theirs.name, theirs.layers, theirs.key, theirs.reason) == (
            ours.name,
            ours.layers,
            ours.key,
            ours.reason,
        )
        if ours.figures is not None:
            assert theirs.figures.ppl == pytest.approx(ours.figures.ppl, rel=1e-6)
            assert theirs.figures.kl_nats == pytest.approx(ours.figures.kl_nats, rel=1e-4, abs=1e-9)
            assert theirs.figures.n_parameters == ours.figures.n_parameters
            assert theirs.figures.seconds != ours.figures.seconds or not ours.drop
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == ["sweep.json", "sweep.svg"]
    # What the workers measured serves a sweep in this process.
    capfd.readouterr()
    assert main([*sweep(place, tmp_path / "ray"), *what]) == 0
    again = SweepReport.load(tmp_path / "ray" / "sweep.json")
    assert again.cells == there.cells


def test_a_sweep_survives_a_killed_worker(
    cluster: Path, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With latency, which takes long enough to kill a worker in the middle of a cell."""
    killed: list[int] = []
    searching = threading.Thread(target=lambda: killed.append(kill_worker("ray::last/none/1")))
    searching.start()
    call = [*sweep(place, tmp_path), "--rank", "last", "--drops", "1,2", "--repair", "bias,none", "--json"]
    assert main([*call, "--executor", "ray"]) == 0
    searching.join()
    assert killed
    assert killed[0] > 0
    report = SweepReport.load(tmp_path / "sweep.json")
    assert [cell.name for cell in report.cells] == ["last/bias/1", "last/bias/2", "last/none/1", "last/none/2"]
    assert all(cell.figures.latency.decode_speedup > 0 for cell in report.cells)
    # Ray says on stdout what it thinks of killed workers; that is no place for it.
    shown = capfd.readouterr()
    assert json.loads(shown.out) == report.to_object()
    assert shown.err == ""


def test_options_that_name_no_executor(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--executor", "dask"], "--executor dask: there is no such; there are local, ray and ray://HOST:PORT"),
        (["--executor", "ray://nowhere"], "there are local, ray and ray://HOST:PORT"),
        (["--ray-resources", "cpus=2"], "--ray-resources belong to --executor ray"),
    ):
        assert main([*sweep(place, tmp_path), *options]) == ExitCode.USAGE
        shown = capfd.readouterr().err.strip()
        assert message in shown
        assert len(shown.splitlines()) == 1


def test_without_ray_the_extra_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    call = ["sweep", str(place / "base"), "-o", str(tmp_path), "--rank", "last", "--drops", "1", "--executor", "ray"]
    assert main(call) == ExitCode.MISSING_PART
    assert 'the executor ray needs more than is installed: pip install "gatenorm[ray]"' in capfd.readouterr().err
