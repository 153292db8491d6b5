"""The version folders of Python models: the code that is served, and the part of the bundle that it needs."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable
from pathlib import Path

from gatenorm_export.bundling import Bundle
from gatenorm_export.deploying.triton.generating import choose_runtime
from gatenorm_export.deploying.triton.request import TritonRequest

_SERVED = Path(__file__).parent / "served"
_PACKAGE = "gatenorm_export.deploying.triton.served."


def write_generating(folder: Path, bundle: Bundle, request: TritonRequest) -> None:
    """The generating model."""
    runtime, engine = choose_runtime(bundle.manifest, request.runtime)
    roles = {"graph", "weights", "tokenizer"} if runtime == "onnxruntime" else {"tokenizer"}
    wanted = [file.name for file in bundle.manifest.files if file.role in roles]
    wanted += [engine.file] if engine is not None else []
    _write_code(folder, "model")
    _copy(bundle, ("manifest.json", *wanted), folder / "bundle")


def write_tokenizing(folder: Path, bundle: Bundle) -> None:
    """The model that makes an encoder's inputs of text."""
    _write_code(folder, "tokenizing_model")
    _copy(bundle, ("tokenizer.json",), folder / "bundle")


def _write_code(folder: Path, module: str) -> None:
    """A module and what it imports. In the repository the files lie beside each other, with no package around."""
    folder.mkdir(parents=True)
    wanted, done = [module], set()
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        text = (_SERVED / f"{name}.py").read_text(encoding="utf-8")
        imports = (node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
        wanted += [module.removeprefix(_PACKAGE) for module in imports if module.startswith(_PACKAGE)]
        (folder / f"{name}.py").write_text(text.replace(f"from {_PACKAGE}", "from "), encoding="utf-8")


def _copy(bundle: Bundle, names: Iterable[str], folder: Path) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, target)
