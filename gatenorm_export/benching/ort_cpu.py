"""ONNX Runtime on the CPU; and what its CUDA backend shares with it: opening two graphs, and the probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.benching.context import configs_beside, mixture_of_experts
from gatenorm_export.benching.graph_work import graph_footprint, graph_work
from gatenorm_export.benching.memory import ProcessMemory
from gatenorm_export.benching.pairing import graph_lineage
from gatenorm_export.benching.probing import probe_sizes, product_graph, rates
from gatenorm_export.benching.protocol import LOADINGS, BenchModel, Memory, Pair, Side
from gatenorm_export.benching.timers import Timer, WallClock
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.graphs import data_files, graph_file, graph_manifest
from gatenorm_export.kinds import kind_of_graph
from gatenorm_export.processor import device_name, usable_threads
from gatenorm_export.records.bench import BenchDevice, Probe, Work
from gatenorm_export.sessions import open_session

DECODER_ONLY = "only decoders have a prefill and a decode; gatenorm compare times other kinds of models"

PROBE_SECONDS = 1.0
"""How long each product of the probe is repeated: its shortest call must not have been interrupted."""


class OrtCpu:
    """The default: no GPU, no package beyond onnxruntime."""

    sequences: tuple[int, ...] = (64, 256, 512)
    loadings = LOADINGS
    # A session reads the file, and keeps repacked copies of the matrices.
    weight_copies = 2.0

    def __init__(self) -> None:
        with needs("ort", "gatenorm bench --backend ort-cpu"):
            import onnxruntime
        self.memory: Memory = ProcessMemory()
        self.timer: Timer = WallClock()
        self.device = BenchDevice(
            backend="ort-cpu",
            runtime=f"ONNX Runtime {onnxruntime.__version__} CPU",
            device=device_name(),
            driver=None,
            threads=usable_threads(),
            timer=self.timer.name,
            memory="process",
        )
        self._where = "cpu"
        self._session: Callable[[Path], Any] = open_session

    def open(self, base: Path, pruned: Path) -> Pair:
        """Two graphs, checked to belong together."""
        graphs = [_graph(path) for path in (base, pruned)]
        lineage = graph_lineage(*graphs)
        has_cache = _kv_bytes(graphs[0]) > 0
        # Of a base with a cache, a pruned graph without one has lost all attention, and decodes on its mask alone.
        sides = [self._side(graph, decodes=has_cache) for graph in graphs]
        configs = configs_beside(graphs[0])
        return Pair(
            sides[0],
            sides[1],
            lineage.n_layers,
            lineage.dropped,
            lineage.plan_sha256,
            longest=configs.max_positions,
            table_of_positions=configs.table_of_positions,
        )

    def control(self, native: Path, pair: Pair) -> Side:
        """A third graph."""
        graph = _graph(native)
        graph_manifest(graph)
        return self._side(graph, decodes=pair.base.cached)

    def probe(self, like: Work) -> Probe:
        """Products with a matrix about as large as the model's, of one row and of many, through ONNX Runtime itself.

        One row reads every weight once, which is what a decode step does, and what a plain copy by one thread is not.
        """
        sizes = probe_sizes(like.weight_bytes, gpu=self._where != "cpu")
        dtype = "float16" if like.dtype == "float16" else "float32"
        graph = product_graph(sizes, dtype)
        from tempfile import TemporaryDirectory

        import onnx

        with TemporaryDirectory(prefix="gatenorm.") as folder:
            path = Path(folder) / "probe.onnx"
            onnx.save(graph, str(path), save_as_external_data=True, location="probe.data", size_threshold=1024)
            del graph
            session = self._session(path)
            seconds = {rows: self._best(session, rows, sizes.inner, dtype) for rows in (1, sizes.rows)}
        return rates(sizes, seconds, dtype, "products of one row and of many through the same runtime")

    def _side(self, graph: Path, *, decodes: bool) -> Side:
        unknown = mixture_of_experts(configs_beside(graph))
        counted = graph_work(graph)
        work = unknown or counted
        return Side(
            path=str(graph),
            sha256=sha256_of(graph),
            file_bytes=graph.stat().st_size + sum(path.stat().st_size for path in data_files(graph)),
            load=partial(self._load, graph, decodes),
            cached=decodes,
            work=work if isinstance(work, Work) else None,
            why_no_work="" if isinstance(work, Work) else work,
            kv_bytes_per_token=_kv_bytes(graph),
            footprint=graph_footprint(graph, counted if isinstance(counted, Work) else None),
        )

    def _load(self, graph: Path, decodes: bool) -> BenchModel:
        from gatenorm_export.benching.onnx_model import OnnxModel

        return OnnxModel(self._session(graph), graph, self._where, self.timer, decodes=decodes)

    def _best(self, session: Any, rows: int, inner: int, dtype: str) -> float:
        """The shortest of a few calls; a probe asks what the device can do, not what it does on average."""
        from onnxruntime import OrtValue

        value = OrtValue.ortvalue_from_numpy(np.ones((rows, inner), dtype), self._where, 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", value)
        binding.bind_output("y", self._where, 0)
        call = partial(session.run_with_iobinding, binding)
        call()
        end = time.monotonic() + PROBE_SECONDS
        found = [self.timer.timed(call)]
        while time.monotonic() < end or len(found) < 3:
            found.append(self.timer.timed(call))
        return min(found)


def _graph(path: Path) -> Path:
    if path.suffix in {".engine", ".plan"}:
        raise InputError(f"{path}: is an engine; measure it with --backend tensorrt or tensorrt-rtx")
    graph = graph_file(path)
    kind = kind_of_graph(graph)
    if kind.kind.name != "decoder":
        raise RefusedError(f"{graph}: {DECODER_ONLY}")
    return graph


def _kv_bytes(graph: Path) -> int:
    from gatenorm_export.pruning import describe_graph

    return describe_graph(graph).facts.kv_bytes_per_token
