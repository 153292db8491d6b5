"""`gatenorm compare --engines`: engines beside their graphs, with a GPU that is played by ONNX Runtime and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_stand_ins import StandIn
from model_zoo import row
from test_comparing import WORDS

from gatenorm_export.benching.ort_cpu import OrtCpu
from gatenorm_export.benching.protocol import Pair
from gatenorm_export.building import (
    BuildOptions,
    Flavour,
    Gpu,
    ShapeRequest,
    build_engine,
    find_flavour,
    find_gpu,
    opening,
)
from gatenorm_export.cli.main import main
from gatenorm_export.comparing import Limits, engine_accuracy, engine_latency, engine_pair, measure_latency
from gatenorm_export.comparing.compare import compare_graphs
from gatenorm_export.comparing.request import ComparisonRequest
from gatenorm_export.errors import ExitCode, MissingPartError, RefusedError
from gatenorm_export.graph_pair import read_graph_pair
from gatenorm_export.kinds import KINDS
from gatenorm_export.progress import Quiet
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import ComparisonReport
from gatenorm_export.reporting import ReportMaterial, render_html, render_markdown

SHAPES = ShapeRequest(prompt=16, context=40)


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two graphs, their engines (the base's in fp32, both again in fp16), and the engine of another pruned graph."""
    try:
        flavour: Flavour = find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("engines")
    _, graph, _ = exported("llama-gqa")
    (folder / "base.txt").write_text(str(graph))
    for name, layers in (("pruned", (1, 2)), ("other", (0, 3))):
        prune_graph(graph, folder / f"{name}.onnx", layers=layers)
    for name, path in (("base", graph), *((name, folder / f"{name}.onnx") for name in ("pruned", "other"))):
        build_engine(path, folder / f"{name}.engine", flavour=flavour, shapes=SHAPES)
    half = BuildOptions(precision="fp16")
    for name, path in (("base", graph), ("pruned", folder / "pruned.onnx")):
        build_engine(path, folder / f"{name}-half.engine", flavour=flavour, shapes=SHAPES, options=half)
    (folder / "text.txt").write_text(WORDS.content)
    return folder


def compare(folder: Path, base: str, pruned: str, *more: object) -> int:
    graph = (folder / "base.txt").read_text()
    arguments = [
        "compare",
        graph,
        folder / "pruned.onnx",
        "--text",
        folder / "text.txt",
        "--max-text-tokens",
        100,
        "-q",
    ]
    engines = ["--engines", folder / f"{base}.engine", folder / f"{pruned}.engine"]
    return main([str(argument) for argument in [*arguments, "--no-latency", *engines, *more]])


def test_without_a_gpu_the_report_says_so_and_still_has_sizes_and_conversion(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_pair, "find_gpu", lambda: None)
    assert compare(folder, "base-half", "pruned-half", "-o", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json", "compare.md"]
    report = ComparisonReport.load(tmp_path / "compare.json")
    assert [entry.role for entry in report.engine_accuracy] == ["unpruned", "pruned"]
    for entry in report.engine_accuracy:
        assert entry.passed is None
        assert entry.reason.startswith("not run: no GPU")
        assert entry.conversion is not None
    assert report.passed
    assert report.base_sizes.engine_bytes == (folder / "base-half.engine").stat().st_size
    page, markdown = (tmp_path / "compare.html").read_text(), (tmp_path / "compare.md").read_text()
    for text in (page, markdown):
        assert "Not run: no GPU" in text
        assert "Accuracy of the pruned engine" in text
        assert "Conversion error of the pruned engine" in text
        assert "base-half.engine" in text
    # Without scores and a plan there is no chart of them.
    assert "Gate-Norm score" not in page
    assert "Policy" not in page
    assert "Scores" not in markdown


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU to every check; what runs on it is ONNX Runtime on the graph that the engine was built from."""
    found = Gpu("Stand-in", "8.6")
    monkeypatch.setattr(engine_pair, "find_gpu", lambda: found)
    monkeypatch.setattr(engine_pair, "check_runnable", lambda path, record: None)
    monkeypatch.setattr(engine_accuracy, "engine_runner", lambda path, record: StandIn(Path(record.parent_path)))
    return found


def test_right_engines_pass_output_by_output(
    folder: Path, tmp_path: Path, gpu: Gpu, capfd: pytest.CaptureFixture[str]
) -> None:
    assert compare(folder, "base", "pruned", "--json", "-o", tmp_path / "proof.json") == 0
    result = json.loads(capfd.readouterr().out)
    base, pruned = result["engine_accuracy"]
    assert base["passed"] is pruned["passed"] is True
    assert (len(base["outputs"]), len(pruned["outputs"])) == (1 + 8, 1 + 4)
    assert base["device"] == "Stand-in (compute capability 8.6)"
    assert "the engines compute what their graphs do" in result["verdict"]
    assert result["verdict"].count(". ") == 0, "one sentence"
    assert (tmp_path / "proof.html").is_file()
    assert (tmp_path / "proof.md").is_file()


def test_engines_that_were_run_before_an_interruption_are_not_run_again(
    folder: Path, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gatenorm_export.reporting.write_comparison", interrupt)
        assert compare(folder, "base", "pruned", "-o", tmp_path) == ExitCode.INTERRUPTED
        with monkeypatch.context() as stopped:
            stopped.setattr(engine_pair, "check_engine", lambda *_, **__: pytest.fail("run again"))
            assert compare(folder, "base", "pruned", "-o", tmp_path) == ExitCode.INTERRUPTED
            # Other engines are not those that were run.
            with pytest.raises(pytest.fail.Exception, match="run again"):
                compare(folder, "base-half", "pruned-half", "-o", tmp_path)
    assert compare(folder, "base", "pruned", "-o", tmp_path) == 0
    report = ComparisonReport.load(tmp_path / "compare.json")
    assert [entry.passed for entry in report.engine_accuracy] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json", "compare.md"]


def test_a_wrong_engine_fails_the_comparison_and_is_named(
    folder: Path, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(path: Path, record: object) -> StandIn:
        def change(outputs, call: int) -> None:
            if path.name == "pruned.engine" and call == 1:
                outputs["present.1.key"][0, 0, -1, 3] += 1.0

        return StandIn(Path(record.parent_path), change)

    monkeypatch.setattr(engine_accuracy, "engine_runner", spoiled)
    assert compare(folder, "base", "pruned", "-o", tmp_path) == ExitCode.UNFAITHFUL
    report = ComparisonReport.load(tmp_path / "compare.json")
    assert not report.passed
    assert [entry.passed for entry in report.engine_accuracy] == [True, False]
    assert report.verdict.startswith("WRONG ENGINE: pruned.engine does not compute")
    worst = report.engine_accuracy[1].worst
    assert worst is not None
    assert worst.output == "present.1.key"
    assert worst.worst.index[3] == 3
    page = (tmp_path / "compare.html").read_text()
    assert "✗" in page
    assert "present.1.key" in page


@pytest.mark.parametrize(
    ("base", "pruned", "says"),
    [
        ("pruned", "base", "are swapped"),
        ("base", "other", "was built from graph"),
        ("base", "base", "built from the same graph"),
        ("base", "pruned-half", "differ in precision"),
    ],
)
def test_engines_that_are_not_the_graphs_own_are_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], base: str, pruned: str, says: str
) -> None:
    assert compare(folder, base, pruned, "-o", tmp_path / "out") == ExitCode.REFUSED
    said = capfd.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_engine_is_bad_input(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pruned.engine.json").write_bytes((folder / "pruned.engine.json").read_bytes())
    (tmp_path / "pruned.engine").write_bytes((folder / "pruned.engine").read_bytes()[:-5])
    arguments = [(folder / "base.txt").read_text(), folder / "pruned.onnx", "--no-latency", "-q"]
    engines = ["--engines", folder / "base.engine", tmp_path / "pruned.engine"]
    code = main(["compare", *map(str, [*arguments, *engines])])
    assert code == ExitCode.BAD_INPUT
    assert "is cut off" in capfd.readouterr().err


def test_engines_of_another_version_are_refused_without_a_gpu_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where they would be loaded; on a machine without TensorRT nothing tells, and nothing is run."""
    monkeypatch.setattr(engine_pair, "find_gpu", lambda: None)
    built = find_flavour("tensorrt-rtx")
    monkeypatch.setattr(opening, "find_flavour", lambda name: Flavour(built.name, "1.99"))
    assert compare(folder, "base", "pruned", "-o", tmp_path / "out") == ExitCode.REFUSED
    said = capfd.readouterr().err
    assert f"base.engine: was built by tensorrt-rtx {built.version}, and 1.99 is installed" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()

    def absent(name: str) -> Flavour:
        raise MissingPartError(f"{name} is not installed")

    monkeypatch.setattr(opening, "find_flavour", absent)
    engines = engine_pair.read_engine_pair(folder / "base.engine", folder / "pruned.engine")
    assert engines.base_record.flavour_version == built.version


def test_an_engine_for_another_gpu_is_refused_when_named_and_left_out_when_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, record: object) -> None:
        raise RefusedError(f"{path}: was built for A, and this machine has B; build it again")

    monkeypatch.setattr(engine_pair, "find_gpu", lambda: Gpu("B", "7.0"))
    monkeypatch.setattr(engine_pair, "check_runnable", refuse)
    engines = engine_pair.read_engine_pair(folder / "base.engine", folder / "pruned.engine")
    graphs = read_graph_pair(Path((folder / "base.txt").read_text()), folder / "pruned.onnx")
    with pytest.raises(RefusedError, match="built for A"):
        engine_pair.engine_accuracies(engines, graphs)
    along = engine_pair.EnginePair(engines.base, engines.pruned, *engines.records, asked=False)
    found = engine_pair.engine_accuracies(along, graphs)
    assert [entry.passed for entry in found] == [None, None]
    assert "built for A, and this machine has B" in found[0].reason


def test_a_run_that_builds_engines_compares_them_and_runs_them_once_there_is_a_gpu(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        find_flavour("tensorrt-rtx")
    except MissingPartError as error:
        pytest.skip(str(error))
    row("llama-gqa").save(tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["run", tmp_path / "model", "--layers", "1", "--out", out, "--flavour", "tensorrt-rtx", "--no-latency"]
    command = [*map(str, arguments), "--prompt", "16", "--context", "40", "--max-text-tokens", "64", "--json", "-q"]

    def run() -> dict[str, Any]:
        assert main(command) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return found

    def gpu(found: Gpu | None) -> None:
        monkeypatch.setattr(engine_pair, "find_gpu", lambda: found)
        monkeypatch.setattr("gatenorm_export.building.find_gpu", lambda: found)

    gpu(None)
    first = run()
    assert [entry["passed"] for entry in first["engine_accuracy"]] == [None, None]
    assert "Not run: no GPU" in (out / "report.html").read_text()
    assert "compare" in run()["reused"]
    gpu(Gpu("Stand-in", "8.6"))
    monkeypatch.setattr(engine_pair, "check_runnable", lambda path, record: None)
    monkeypatch.setattr(engine_accuracy, "engine_runner", lambda path, record: StandIn(Path(record.parent_path)))
    again = run()
    assert "build" in again["reused"]
    assert [entry["passed"] for entry in again["engine_accuracy"]] == [True, True]
    assert "Accuracy of the pruned engine" in (out / "report.md").read_text()


def test_engines_are_timed_on_their_own_backend(
    folder: Path, tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The backend is ONNX Runtime's, on the graphs that the engines were built from."""
    opened: list[tuple[str, object]] = []

    class Played(OrtCpu):
        def __init__(self, graphs: tuple[Path, Path]) -> None:
            super().__init__()
            self.graphs = graphs

        def open(self, base: Path, pruned: Path) -> Pair:
            assert (base.name, pruned.name) == ("base.engine", "pruned.engine")
            return super().open(*self.graphs)

    def open_backend(name: str, **options: Any) -> Played:
        opened.append((name, options["graphs"]))
        return Played(**options)

    monkeypatch.setattr(engine_latency, "find_gpu", lambda: gpu)
    monkeypatch.setattr(engine_latency, "open_backend", open_backend)
    monkeypatch.setattr(engine_latency, "MINUTES", 0.15)
    graph = Path((folder / "base.txt").read_text())
    engines = engine_pair.read_engine_pair(folder / "base.engine", folder / "pruned.engine")
    request = ComparisonRequest(folder / "text.txt", 100, True, Limits(), "a command")
    # The graphs' own latency is measured elsewhere, and takes longer.
    monkeypatch.setattr(KINDS["decoder"].__class__, "function", played_function(KINDS["decoder"].__class__.function))
    report = compare_graphs(graph, folder / "pruned.onnx", request, engines=engines)
    assert opened == [("tensorrt-rtx", (graph, folder / "pruned.onnx"))]
    latency = report.engine_latency
    assert latency is not None
    assert [(row.phase, row.sequence) for row in latency.rows] == [
        (phase, sequence) for phase in ("prefill", "decode") for sequence in (4, 8, 16)
    ]
    for entry in latency.rows:
        assert entry.speedup_low <= entry.speedup <= entry.speedup_high
        assert entry.roofline is not None
    assert latency.probe is not None
    assert "on the GPU it makes decode" in report.verdict
    material = ReportMaterial(None, None, report, engines=engines.records)
    page, markdown = render_html(material), render_markdown(material)
    assert "<h3>Engines</h3>" in page
    assert "### Engines" in markdown
    assert "Decode of the engines" in page
    # The graphs' latency has its own prediction.
    assert report.latency is not None
    assert all(row.roofline is not None for row in report.latency.rows)

    def broken(name: str, **options: Any) -> Played:
        raise MissingPartError("needs torch with CUDA")

    monkeypatch.setattr(engine_latency, "open_backend", broken)
    found, reason = engine_latency.measure_engines(
        engines, read_graph_pair(graph, folder / "pruned.onnx"), progress=Quiet()
    )
    assert found is None
    assert reason == "not measured: needs torch with CUDA"


def played_function(real: Any) -> Any:
    def function(self: Any, which: str) -> Any:
        if which != "latency":
            return real(self, which)
        return lambda base, pruned, spec, progress: measure_latency(base, pruned, sequences=(8,))

    return function


def test_the_engines_own_runner_is_polygraphys_and_its_failure_is_one_line(folder: Path) -> None:
    """Without a GPU the engine cannot be loaded; that much of the way to it is the real one."""
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    engines = engine_pair.read_engine_pair(folder / "base.engine", folder / "pruned.engine")
    runner = engine_accuracy.engine_runner(engines.base, engines.base_record)
    assert type(runner).__module__ == "polygraphy.backend.trt.runner"
    graph = Path((folder / "base.txt").read_text())
    with pytest.raises(RefusedError, match=r"base\.engine failed at a step of the accuracy check") as caught:
        engine_accuracy.check_engine(engines.base, engines.base_record, graph, "unpruned", device="none")
    assert "\n" not in str(caught.value)
