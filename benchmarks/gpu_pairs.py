"""For each backend: how a shape's model without some layers becomes a pair that can be timed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_shapes import ShapeModels, file_bytes
from gatenorm_export.benching import BenchRequest, open_backend
from gatenorm_export.benching.protocol import STEPS, Backend, Pair
from gatenorm_export.errors import RefusedError
from gatenorm_export.progress import Progress

BACKENDS: dict[str, tuple[str, ...]] = {
    "cuda": ("torch", "tensorrt", "tensorrt-rtx", "ort-cuda"),
    "cpu": ("ort-cpu", "torch"),
}
"""Device -> what is measured on it."""

Opened = Callable[[int], tuple[Backend, Pair]]
"""Number of removed layers -> the backend and the pair."""


def open_pairs(
    name: str, device: str, models: ShapeModels, drops: Sequence[int], request: BenchRequest, progress: Progress
) -> Opened:
    """Open a backend once; the pairs are made one by one.

    Raises:
        MissingPartError: the backend is not installed.
        RefusedError: it has no device here, or the disk is too small for its files.
    """
    if name == "torch":
        return _torch(device, models)
    backend = open_backend(name)
    engines = name.startswith("tensorrt")
    _check_disk(models, drops, engines=engines)
    if engines:
        return _engines(name, backend, models, request, progress)

    def pair(drop: int) -> tuple[Backend, Pair]:
        base = models.graph(0, progress)
        if drop == 0:
            return backend, _with_itself(backend.open(base, models.graph(max(*drops, 1), progress)))
        return backend, backend.open(base, models.graph(drop, progress))

    return pair


def _torch(device: str, models: ShapeModels) -> Opened:
    backend: Any = open_backend("torch", device=device, precision="fp16" if device == "cuda" else "fp32")
    source = models.torch_source(device, backend.precision)

    def pair(drop: int) -> tuple[Backend, Pair]:
        layers = models.layers(drop)
        name = models.shape.name
        sides = backend.sides(source.make, source.counted, source.modules, name, layers, sha256=source.sha256)
        return backend, Pair(sides[0], sides[1], models.n_layers, layers, None)

    return pair


def _engines(name: str, backend: Backend, models: ShapeModels, request: BenchRequest, progress: Progress) -> Opened:
    from gatenorm_export.building import ShapeRequest, build_engine, find_flavour

    longest = max(request.sequences)
    shapes = ShapeRequest(batch=max(request.batches), prompt=longest, context=longest + STEPS)

    def engine(drop: int) -> tuple[Path, Path]:
        graph = models.graph(drop, progress)
        path = graph.with_name(f"{name}-{drop}.engine")
        if not path.is_file():
            build_engine(graph, path, flavour=find_flavour(name), shapes=shapes, progress=progress)
        return path, graph

    def pair(drop: int) -> tuple[Backend, Pair]:
        base, graph = engine(0)
        # Engines are as large as the model; of the pruned ones only the one that is measured is kept.
        for old in base.parent.glob(f"{name}-*.engine"):
            if old not in (base, base.with_name(f"{name}-{drop}.engine")):
                old.unlink()
        if drop == 0:
            other, without = engine(1)
            return _opened(name, (graph, without), base, other, with_itself=True)
        pruned, without = engine(drop)
        return _opened(name, (graph, without), base, pruned, with_itself=False)

    return pair


def _opened(
    name: str, graphs: tuple[Path, Path], base: Path, pruned: Path, *, with_itself: bool
) -> tuple[Backend, Pair]:
    backend = open_backend(name, graphs=graphs)
    pair = backend.open(base, pruned)
    return backend, _with_itself(pair) if with_itself else pair


def _with_itself(pair: Pair) -> Pair:
    """The base twice: what is found then is what measuring alone does."""
    return dataclasses.replace(pair, pruned=pair.base, dropped=())


def _check_disk(models: ShapeModels, drops: Sequence[int], *, engines: bool) -> None:
    folder = models.folder
    folder.mkdir(parents=True, exist_ok=True)
    # An engine is as large as its graph: the base's and one pruned one's.
    need = file_bytes(models.shape.dimensions, drops) * (3 if engines else 1)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise RefusedError(f"{folder}: needs {need / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free; use --work")
