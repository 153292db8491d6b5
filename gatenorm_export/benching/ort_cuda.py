"""ONNX Runtime on an NVIDIA GPU: everything bound on the device, on torch's stream, so that events can time it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from gatenorm_export.benching.cuda import GPU_SEQUENCES, cuda_torch, gpu_names
from gatenorm_export.benching.memory import DeviceMemory
from gatenorm_export.benching.ort_cpu import OrtCpu
from gatenorm_export.benching.timers import CudaEvents
from gatenorm_export.errors import InputError, MissingPartError, RefusedError, needs
from gatenorm_export.processor import usable_threads
from gatenorm_export.records.bench import BenchDevice

_PROVIDER = "CUDAExecutionProvider"


class OrtCuda(OrtCpu):
    """Graphs, pairs and the probe are those of the CPU backend; sessions, timer and memory are the GPU's."""

    sequences = GPU_SEQUENCES
    loadings = 2
    # Weights, and as much again while the first calls choose kernels and take scratch memory.
    weight_copies = 1.3

    def __init__(self) -> None:
        with needs("ort-gpu", "gatenorm bench --backend ort-cuda"):
            import onnxruntime
        if _PROVIDER not in onnxruntime.get_available_providers():
            raise MissingPartError(
                f"--backend ort-cuda needs onnxruntime-gpu, and onnxruntime {onnxruntime.__version__} has no "
                f'{_PROVIDER}: pip uninstall onnxruntime, then pip install "gatenorm[ort-gpu]"'
            )
        torch = cuda_torch("ort-cuda")
        name, driver = gpu_names(torch)
        stream = torch.cuda.Stream()
        self.timer = CudaEvents(stream)
        self.memory = DeviceMemory(torch.cuda)
        self.device = BenchDevice(
            backend="ort-cuda",
            runtime=f"ONNX Runtime {onnxruntime.__version__} CUDA",
            device=name,
            driver=driver,
            threads=usable_threads(),
            timer=self.timer.name,
            memory="device",
        )
        self._where = "cuda"
        self._session = partial(_cuda_session, stream.cuda_stream)


def _cuda_session(stream: int, graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    providers = [(_PROVIDER, {"device_id": "0", "user_compute_stream": str(stream)}), "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{graph}: ONNX Runtime cannot load it ({first})") from error
    # Where its libraries do not load, ONNX Runtime goes on with the CPU and only logs it.
    if session.get_providers()[0] != _PROVIDER:
        raise RefusedError(
            f"{graph}: ONNX Runtime did not bring up {_PROVIDER} and would have run on the CPU; its CUDA and cuDNN "
            "libraries must be those it was built for"
        )
    return session
