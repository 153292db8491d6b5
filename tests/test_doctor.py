"""What doctor says is so: of packages that are there, missing, unfit or broken, and of stages that were asked for."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_cases import toy_folder
from test_repository import HEAVY

from gatenorm_export.bundling import BundleRequest, make_bundle
from gatenorm_export.cli.main import VERBS, main
from gatenorm_export.doctoring import STAGES, examine, packages_of, requirements
from gatenorm_export.doctoring.lacking import extras_lacking
from gatenorm_export.errors import ExitCode, InputError
from gatenorm_export.records.doctor import DoctorReport, PartFinding, StageFinding

ROOT = Path(__file__).parent.parent
DECLARED = """\
numpy>=1.26
onnx>=1.17; extra == "onnx"
gatenorm[onnx]; extra == "ort"
onnxruntime>=1.20; extra == "ort"
gatenorm[onnx]; extra == "export"
torch>=2.6; extra == "export"
gatenorm[onnx]; extra == "ort-gpu"
onnxruntime-gpu>=1.20; extra == "ort-gpu"
ray>=2.9; extra == "ray"
fsspec>=2024; extra == "remote"
""".splitlines()
INSTALLED = {"numpy": "2.4.6", "onnx": "1.10.0", "onnxruntime-gpu": "1.22.0+cu13"}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another set of requirements, and another set of installed packages."""

    def version(name: str) -> str:
        if name not in INSTALLED:
            raise importlib.metadata.PackageNotFoundError(name)
        return INSTALLED[name]

    monkeypatch.setattr(requirements.importlib.metadata, "requires", lambda name: DECLARED)
    monkeypatch.setattr(requirements.importlib.metadata, "version", version)
    for found in (packages_of, requirements.modules_of):
        found.cache_clear()
    yield
    for found in (packages_of, requirements.modules_of):
        found.cache_clear()


def stage(report: DoctorReport, name: str) -> StageFinding:
    return next(stage for stage in report.stages if stage.name == name)


def part(report: DoctorReport, name: str, kind: str) -> PartFinding:
    return next(part for part in report.parts if (part.name, part.kind) == (name, kind))


def test_packages_are_judged_by_the_metadata(pretended: None) -> None:
    assert [package.name for package in packages_of("")] == ["numpy"]
    onnx, ort = packages_of("ort")
    assert onnx.problem == "onnx 1.10.0 does not fit, onnx>=1.17 is needed"
    assert ort.problem is None, "the same module comes from onnxruntime-gpu"
    assert packages_of("export")[1].problem == "torch is not installed"


def test_a_stage_tells_what_it_lacks_and_the_command_that_brings_it(pretended: None) -> None:
    report = examine(("score", "export"))
    assert stage(report, "score").ready
    assert report.asked_ready is False
    export = stage(report, "export")
    assert not export.ready
    assert export.lacks[:2] == ("onnx 1.10.0 does not fit, onnx>=1.17 is needed", "torch is not installed")
    assert export.remedies[0] == 'pip install "gatenorm[export,ort]"'
    assert part(report, "torch", "package").state == "missing"
    assert part(report, "onnx", "package").state == "unfit"


@pytest.mark.parametrize(
    ("verb", "options", "first", "lacking"),
    [
        ("run", {}, "onnx", ("export", "ort")),
        ("correlate", {}, "onnx", ("export",)),
        ("bundle", {}, "onnx", ("ort",)),
        ("verify", {"model": None}, "onnx", ("ort",)),
        ("verify", {"model": "m"}, "onnx", ("export", "ort")),
        ("prune", {"repair": "none"}, "onnx", ("onnx",)),
        ("prune", {"repair": "linear"}, "onnx", ("export", "ort")),
        ("sweep", {"executor": "local"}, "onnx", ("export", "ort")),
        ("sweep", {"executor": "ray://host:1"}, "onnx", ("export", "ort", "ray")),
        ("score", {}, "remote", ("remote",)),
        ("score", {}, "export", ("export",)),
        ("bench", {"backend": None}, "ort", ("ort",)),
        ("bench", {"backend": "torch"}, "export", ("export",)),
        ("bench", {"backend": "ort-cuda"}, "ort-gpu", ("ort-gpu", "export")),
        ("report", {}, "onnx", ("onnx",)),
    ],
)
def test_a_message_names_every_extra_that_the_verb_lacks(
    pretended: None, verb: str, options: dict[str, str], first: str, lacking: tuple[str, ...]
) -> None:
    assert extras_lacking(verb, options, first) == lacking


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    """A bundle, made before another environment is pretended."""
    make_bundle(BundleRequest(toy_folder(tmp_path / "toy"), tmp_path / "bundle"))
    return tmp_path / "bundle"


def test_the_command_line_names_them_all(
    bundled: Path, pretended: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert main(["verify", str(bundled), "--quiet"]) == ExitCode.MISSING_PART
    assert 'reading ONNX needs more than is installed: pip install "gatenorm[ort]"' in capfd.readouterr().err


def test_the_stages_are_those_of_the_verbs_and_the_extras_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for row in STAGES for extra in row.extras} <= set(extras)
    assert {"onnx", "export", "ort-gpu", "tensorrt", "trt-rtx", "triton", "eval", "ray", "demo"} <= set(extras)
    assert set(VERBS) - {"doctor", "completion"} <= {row.verb for row in STAGES}
    assert len({row.name for row in STAGES}) == len(STAGES)


def test_this_environment_can_do_what_the_tests_do(capfd: pytest.CaptureFixture[str]) -> None:
    """In a process that cannot import torch and the like: a version is no reason to."""
    heavy = set(HEAVY) - {"onnxruntime", "tensorrt"}
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in heavy)
    code = blocked + "from gatenorm_export.cli.main import main\nsys.exit(main(['doctor', '--json', '--quiet']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = DoctorReport.model_validate_json(done.stdout)
    for name in ("score", "export", "prune", "compare", "bench-ort-cpu", "recover", "report", "build-tensorrt-rtx"):
        assert stage(report, name).ready, stage(report, name)
    ort = part(report, "onnxruntime", "runtime")
    assert ort.version == importlib.metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in ort.detail
    assert report.machine.memory_bytes
    assert all(place.writable for place in report.places)


@pytest.mark.parametrize(
    ("program", "word"),
    [
        ("raise ImportError('libfoo.so.1: cannot open shared object file')", "libfoo.so.1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    ],
)
def test_a_runtime_that_does_not_load_is_unfit(
    program: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "onnxruntime.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor", "--json", "--quiet", "--stage", "compare"]) == ExitCode.MISSING_PART
    captured = capfd.readouterr()
    assert captured.err.startswith("gatenorm: compare cannot run here: ")
    report = DoctorReport.model_validate_json(captured.out)
    ort = part(report, "onnxruntime", "runtime")
    assert ort.state == "unfit"
    assert word in ort.detail
    assert any(word in lack for lack in stage(report, "compare").lacks)
    assert stage(report, "score").ready


def test_asking_for_stages(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quiet", "--stage", "score", "--stage", "build"]) == 0
    shown = capfd.readouterr().out
    assert "build-tensorrt-rtx" in shown
    assert 'pip install "gatenorm[tensorrt]"' in shown
    assert "recover" not in shown
    with pytest.raises(InputError, match="there is no such; there are score"):
        examine(("scoer",))


LACKING = """
import contextlib, io, sys
for name in {heavy!r}:
    sys.modules[name] = None
from gatenorm_export.cli.main import main
for arguments in {commands!r}:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main([*arguments, "--quiet"])
    print(code, said.getvalue(), end="")
"""


def test_a_verb_that_lacks_a_package_says_so_and_exits_with_4(tmp_path: Path) -> None:
    for name in ("model.onnx", "text.txt"):
        (tmp_path / name).write_text("something")
    (tmp_path / "scores.json").write_text("{}")
    graph, out = str(tmp_path / "model.onnx"), str(tmp_path / "out")
    commands = (
        ["inspect", graph],
        ["score", graph],
        ["prune", graph, "--layers", "0", "-o", out],
        ["build", graph, "-o", out],
        ["sweep", graph, "-o", out],
        ["compare", graph, graph, "--model", "smollm2"],
        ["bench", graph, graph],
        ["eval", graph, "--tasks", "none"],
    )
    code = LACKING.format(heavy=HEAVY, commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for arguments, line in zip(commands, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{int(ExitCode.MISSING_PART)} gatenorm: "), (arguments, line)
        assert 'pip install "gatenorm[' in line, arguments
