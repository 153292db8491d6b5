"""Invariants of the repository itself: layering, light imports, public names, file sizes."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((*ROOT.glob("gatenorm_export/**/*.py"), *ROOT.glob("graph_passes/**/*.py")))
HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "polygraphy",
    "optimum",
    "tensorrt",
    "lm_eval",
    "peft",
    "ray",
)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", sorted(ROOT.glob("graph_passes/**/*.py")), ids=lambda path: path.name)
def test_graph_passes_import_onnx_ir_and_the_standard_library_only(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "onnx_ir", "graph_passes"}
    assert {name.split(".")[0] for name in imported(path)} <= allowed


def _of_passes(node: ast.ImportFrom) -> bool:
    return (node.module or "").split(".")[0] == "graph_passes"


def test_only_few_files_run_graph_passes() -> None:
    runtime = []
    for path in ROOT.glob("gatenorm_export/**/*.py"):
        tree = ast.parse(path.read_text())
        typing_only = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node)
        ]
        hidden = {id(inner) for block in typing_only for inner in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in hidden and _of_passes(node):
                runtime.append(path.relative_to(ROOT / "gatenorm_export").as_posix())
    assert set(runtime) == {
        "checkpoints/onnx_file.py",
        "pruning.py",
        "inspecting.py",
        "calibrating/stream.py",
        "graph_repairs.py",
        "precision/graph_changes.py",
        "bundling/interface.py",
    }


def test_arrows_never_point_back() -> None:
    """cli -> pipeline -> stages -> records: nothing below imports what is above it."""
    for path in ROOT.glob("gatenorm_export/**/*.py"):
        names = set(imported(path))
        layer = path.relative_to(ROOT / "gatenorm_export").as_posix()
        if not layer.startswith("cli/"):
            assert not any(name.startswith("gatenorm_export.cli") for name in names), layer
        if not layer.startswith("cli/") and layer != "pipeline.py":
            assert "gatenorm_export.pipeline" not in names, layer
        if layer.startswith("records"):
            allowed = tuple(f"gatenorm_export.{name}" for name in ("records", "errors", "artifacts", "small_files"))
            assert all(name.startswith(allowed) for name in names if name.startswith("gatenorm_export"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["score", "--help"], ["run", "--help"]], ids=str)
def test_the_command_line_answers_without_heavy_packages(arguments: list[str]) -> None:
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    code = blocked + f"from gatenorm_export.cli.main import main\nsys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gatenorm" in done.stdout.lower()


@pytest.mark.parametrize(
    "name",
    [
        "graph_passes",
        "graph_passes.lowering",
        "graph_passes.precision",
        *(
            f"gatenorm_export.{p}"
            for p in (
                "benching",
                "building",
                "bundling",
                "calibrating",
                "comparing",
                "correlating",
                "deploying.triton",
                "evaluating",
                "executing",
                "recovering",
                "reporting",
                "architectures",
                "checkpoints",
                "scoring",
                "sweeping",
            )
        ),
    ],
)
def test_public_names_exist(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.{public}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320
