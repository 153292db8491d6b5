"""Graphs as they leave the two common simplifiers.

Both functions take the path of a graph, the row it came from and a folder, write ``model.onnx`` there (weights inside,
side files copied) and return its path.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.matrix.exporters.cannot_export import CannotExport
from benchmarks.matrix.exporters.quiet import quiet_export


def onnxsim(graph: Path, row: Any, folder: Path) -> Path:
    """onnxsim.simplify with its defaults."""
    import onnx
    import onnxsim as tool

    with quiet_export():
        simplified, equal = tool.simplify(onnx.load(graph))
    if not equal:
        raise CannotExport(f"{graph}: onnxsim's own check says that it changed what the graph computes")
    return _write(simplified, graph, folder)


def onnxslim(graph: Path, row: Any, folder: Path) -> Path:
    """onnxslim.slim with its defaults."""
    import onnx
    import onnxslim as tool

    with quiet_export():
        slimmed = tool.slim(onnx.load(graph))
    if slimmed is None:
        raise CannotExport(f"{graph}: onnxslim returned nothing")
    return _write(slimmed, graph, folder)


def _write(model: Any, source: Path, folder: Path) -> Path:
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(model, path)
    for side in source.parent.glob("*.json"):
        shutil.copyfile(side, folder / side.name)
    return path
