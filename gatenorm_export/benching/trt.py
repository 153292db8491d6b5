"""Data-centre TensorRT; and what TensorRT-RTX shares with it, which is everything but the name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.benching.cuda import GPU_SEQUENCES, cuda_torch, gpu_names
from gatenorm_export.benching.engine_files import EngineFile, engine_lineage, read_engine
from gatenorm_export.benching.memory import DeviceMemory
from gatenorm_export.benching.protocol import BenchModel, Memory, Pair, Side
from gatenorm_export.benching.timers import CudaEvents, Timer
from gatenorm_export.building.flavours import FlavourName, find_flavour
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.processor import usable_threads
from gatenorm_export.records.bench import BenchDevice, Probe, Work


class TensorRT:
    """Engines built by `gatenorm build`, with profiles for prefill and decode."""

    flavour_name: ClassVar[FlavourName] = "tensorrt"
    sequences = GPU_SEQUENCES
    loadings = 2
    # The engine's weights, and the activations of two contexts.
    weight_copies = 1.3

    def __init__(self, graphs: tuple[Path, Path] | None = None) -> None:
        self._graphs: tuple[Path | None, Path | None] = graphs or (None, None)
        self.flavour = find_flavour(self.flavour_name)
        torch = cuda_torch(self.flavour_name)
        name, driver = gpu_names(torch)
        self._stream = torch.cuda.Stream()
        self.timer: Timer = CudaEvents(self._stream)
        self.memory: Memory = DeviceMemory(torch.cuda)
        self.device = BenchDevice(
            backend=self.flavour_name,
            runtime=f"{self.flavour_name} {self.flavour.version}",
            device=name,
            driver=driver,
            threads=usable_threads(),
            timer=self.timer.name,
            memory="device",
        )

    def open(self, base: Path, pruned: Path) -> Pair:
        """Two engines whose graphs belong together."""
        files = [
            read_engine(path, self.flavour_name, graph)
            for path, graph in zip((base, pruned), self._graphs, strict=True)
        ]
        lineage = engine_lineage(*files)
        has_cache = files[0].kv_bytes_per_token > 0
        sides = [self._side(file, cached=has_cache) for file in files]
        return Pair(sides[0], sides[1], lineage.n_layers, lineage.dropped, lineage.plan_sha256)

    def control(self, native: Path, pair: Pair) -> Side:
        """A third engine."""
        return self._side(read_engine(native, self.flavour_name), cached=pair.base.cached)

    def probe(self, like: Work) -> Probe:
        """torch's products on the same GPU: a TensorRT engine of the probe would have to be built first."""
        from gatenorm_export.benching.torch_eager import Precision, TorchEager

        precision: dict[str, Precision] = {"float16": "fp16", "bfloat16": "bf16"}
        return TorchEager("cuda", precision.get(like.dtype, "fp32")).probe(like)

    def _side(self, file: EngineFile, *, cached: bool) -> Side:
        return Side(
            path=str(file.path),
            sha256=sha256_of(file.path),
            file_bytes=file.path.stat().st_size,
            load=partial(self._load, file),
            cached=cached,
            work=file.work if isinstance(file.work, Work) else None,
            why_no_work="" if isinstance(file.work, Work) else file.work,
            kv_bytes_per_token=file.kv_bytes_per_token,
        )

    def _load(self, file: EngineFile) -> BenchModel:
        from gatenorm_export.benching.engine_model import EngineModel

        engine = _deserialise(self.flavour.module(), file.path)
        return EngineModel(engine, file.record, self._stream, self.timer)


def _deserialise(trt: Any, path: Path) -> Any:
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if runtime is None:
        raise RefusedError(f"{path}: TensorRT gave no runtime; is the driver as new as its CUDA libraries want it?")
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise InputError(f"{path}: TensorRT cannot load it; an engine runs on the kind of GPU that it was built for")
    return engine
