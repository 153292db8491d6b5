"""Several builds or benchmarks in one command, in this process and on two Ray workers, one of which is killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench_cases import faster
from killing import kill_worker

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.building import find_flavour, read_engine
from gatenorm_export.cli.batches import names_of
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, MissingPartError
from gatenorm_export.executing import LocalExecutor, Task, run_batch
from gatenorm_export.progress import Quiet
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import PrunePlan
from gatenorm_export.records.batch import BatchReport
from gatenorm_export.records.bench import BenchReport

QUICK = ["--sequence", "8", "--repeats", "8", "--quiet"]


@pytest.fixture(scope="module")
def place(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph in ``base``, and two that were pruned from it, in ``one`` and ``two``."""
    _, graph, _ = exported("llama-gqa")
    folder = tmp_path_factory.mktemp("plans")
    (folder / "base").symlink_to(graph.parent)
    for name, layers in (("one", (1,)), ("two", (1, 2))):
        prune_graph(graph, folder / name / "model.onnx", layers=layers)
    return folder


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def killing(title: str, work: Callable[[], int]) -> int:
    """The exit code of ``work``, in the middle of which a worker was killed."""
    killed: list[int] = []
    searching = threading.Thread(target=lambda: killed.append(kill_worker(title)))
    searching.start()
    code = work()
    searching.join()
    assert killed[0] > 0
    return code


def batch(out: Path, reused: bool) -> BatchReport:
    """The record of a command, its files held against their digests."""
    found = BatchReport.load(out / "batch.json")
    assert not found.failed
    for task in found.done:
        assert task.reused is reused
        assert task.files
        assert all(sha256_of(out / file.name) == file.sha256 for file in task.files)
    return found


def test_benchmarks_of_several_plans_survive_a_killed_worker(cluster: Path, place: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "speed"
    pair = ["bench", place / "base", place / "one", place / "two", "-o", out, *QUICK, "--executor", "ray"]
    assert killing("ray::two", lambda: call(*pair, "--json")) == 0
    shown = capfd.readouterr()
    printed = json.loads(shown.out)
    assert shown.err == ""
    first = batch(out, reused=False)
    assert [task.name for task in first.done] == ["one", "two"]
    for name, dropped in (("one", (1,)), ("two", (1, 2))):
        report = BenchReport.load(out / name / "bench.json")
        assert report.dropped == dropped
        assert report.command.endswith("--json")
        assert printed["benches"][name] == report.to_object()
        assert (out / name / "bench.md").is_file()
    # Again, for the table this time: nothing is measured.
    assert call(*pair) == 0
    assert "done before" in capfd.readouterr().out
    assert [task.seconds for task in batch(out, reused=True).done] == [task.seconds for task in first.done]
    # Far slower baselines hold, whatever the noise; one that was far faster fails the command.
    for name, two, code in (("slow", 1e-3, ExitCode.OK), ("fast", 1e3, ExitCode.REGRESSION)):
        for plan, times in (("one", 1e-3), ("two", two)):
            report = BenchReport.load(out / plan / "bench.json")
            faster(report, times).save(tmp_path / name / plan / "bench.json")
        assert call(*pair, "--baseline", tmp_path / name, "--max-regression", "3%") == code
        assert ("REGRESSION" in capfd.readouterr().out) is (code != ExitCode.OK)


def test_builds_of_several_graphs_survive_a_killed_worker(
    cluster: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))
    out = tmp_path / "engines"
    what = ["--flavour", "tensorrt-rtx", "--prompt", "16", "--context", "32", "--no-conversion-check", "--no-cache"]
    both = ["build", place / "base", place / "two", "-o", out, *what, "-q", "--executor", "ray"]
    assert killing("ray::two", lambda: call(*both)) == 0
    batch(out, reused=False)
    records = {name: read_engine(out / f"{name}.engine") for name in ("base", "two")}
    assert records["two"].ancestors == (records["base"].parent_sha256,)
    assert records["two"].parent_path == str((place / "two" / "model.onnx").resolve())
    # A damaged engine is put there again from what is kept, and nothing is built.
    (out / "two.engine").unlink()
    monkeypatch.setattr("gatenorm_export.building.engines.compile_engine", None)
    assert call(*both[:-1], "local") == 0
    batch(out, reused=True)
    assert read_engine(out / "two.engine") == records["two"]
    # One alone, as a file: the same form as without an executor.
    assert call("build", place / "two", "-o", out / "x.engine", *what, "-q", "--executor", "ray") == 0
    assert read_engine(out / "x.engine").sha256 == records["two"].sha256


def test_one_that_fails_stops_no_other(exported, place: Path, tmp_path: Path, capsys) -> None:
    _, other, _ = exported("llama-mha")
    assert call("bench", place / "base", other, place / "two", "-o", tmp_path, *QUICK) == ExitCode.REFUSED
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1
    assert "gatenorm: 1 of 2 failed: base: " in shown.err
    assert "failed" in shown.out
    found = BatchReport.load(tmp_path / "batch.json")
    assert [task.name for task in found.done] == ["two"]
    assert [(task.name, task.exit_code) for task in found.failed] == [("base", ExitCode.REFUSED)]
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("quiet", [True, False])
def test_the_reason_of_a_failure_is_told_once(quiet: bool, tmp_path: Path) -> None:
    said: list[str] = []
    progress = Quiet() if quiet else SimpleNamespace(say=said.append, task=Quiet().task)
    executor = LocalExecutor(tmp_path, progress=progress)
    tasks = [Task(name, "nowhere:nothing", {}) for name in ("one", "two")]
    batch = run_batch(tasks, executor, lambda _: (), out=tmp_path, progress=progress)
    with pytest.raises(InputError) as caught:
        batch.raise_failures()
    everything = [*said, str(caught.value)]
    assert sum(line.count("nowhere:nothing: cannot be found") for line in everything) == 2
    assert "2 of 2 failed" in everything[-1]
    assert all(name in everything[-1] for name in ("one", "two"))
    # One alone is told by its error.
    said.clear()
    alone = run_batch(tasks[:1], executor, lambda _: (), out=tmp_path, progress=progress)
    assert said == []
    with pytest.raises(InputError, match=r"^nowhere:nothing: cannot be found"):
        alone.raise_failures()


def test_plans_of_a_checkpoint_in_torch(exported, tmp_path: Path) -> None:
    spec, _, _ = exported("llama-gqa")
    for name, drop in (("few", (1,)), ("many", (1, 2))):
        plan = PrunePlan(
            model_name="tiny",
            model_digest=spec.query_key_digest,
            scores_sha256="0" * 64,
            n_layers=4,
            policy=name,
            protect=(),
            drop=drop,
        )
        plan.save(tmp_path / name / "plan.json")
    plans = [tmp_path / name / "plan.json" for name in ("few", "many")]
    torch = ["--backend", "torch", "--device", "cpu"]
    assert call("bench", spec.path, *plans, "-o", tmp_path / "out", *torch, *QUICK) == 0
    for name, drop in (("few", (1,)), ("many", (1, 2))):
        report = BenchReport.load(tmp_path / "out" / name / "bench.json")
        assert report.dropped == drop
        assert report.base.path == spec.path


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    for folder in ("first/pruned", "second/pruned"):
        (tmp_path / folder).mkdir(parents=True)
    first, second, engine = (tmp_path / name for name in ("first/pruned", "second/pruned/model.onnx", "a.engine"))
    assert list(names_of([first, engine])) == ["pruned", "a"]
    assert list(names_of([first, second])) == ["first-pruned", "second-pruned"]


@pytest.mark.parametrize(
    ("verb", "rest", "said", "code"),
    [
        ("bench", ["base", "one", "two"], "several results of bench need a folder; name one with -o", ExitCode.USAGE),
        ("bench", ["base", "one", "two", "-o", "a.json"], "several results of bench need a folder", ExitCode.USAGE),
        ("build", ["base", "one", "-o", "a.engine"], "several results of build need a folder", ExitCode.USAGE),
        ("bench", ["base", "one", "one/model.onnx", "-o", "out"], "one: is named twice", ExitCode.USAGE),
        ("bench", ["base", "one", "two", "-o", "out", "--control", "one"], "name one pruned model", ExitCode.USAGE),
        ("bench", ["base", "one", "--executor", "ray"], "name a place for them with -o", ExitCode.USAGE),
        ("bench", ["base", "one", "two", "-o", "out", "--baseline", "none"], "no such baseline", ExitCode.BAD_INPUT),
        ("build", ["base", "none", "-o", "out"], "no such ONNX file", ExitCode.BAD_INPUT),
    ],
    ids=str,
)
def test_what_is_asked_wrongly_is_told_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys, verb: str, rest: list[str], said: str, code: ExitCode
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    assert call(verb, *rest, "-q") == code
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 1
    left = {path for path in place.iterdir() if path.name not in before}
    assert not any(path.is_file() or any(not inner.name.startswith(".") for inner in path.iterdir()) for path in left)
