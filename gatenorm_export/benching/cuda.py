"""A GPU through torch: its name, a stream, its memory. torch also holds the buffers of engines."""

from __future__ import annotations

from typing import Any

from gatenorm_export.benching.clocks import gpu_driver
from gatenorm_export.errors import MissingPartError, RefusedError, needs

GPU_SEQUENCES = (512, 1024, 2048, 4096)
"""The paper's lengths."""


def cuda_torch(backend: str) -> Any:
    """torch, known to see a GPU.

    Raises:
        MissingPartError: torch is not installed, or is a build without CUDA.
        RefusedError: torch sees no GPU.
    """
    with needs("export", f"--backend {backend} keeps its buffers in torch, and"):
        import torch
    if torch.version.cuda is None:
        raise MissingPartError(
            f"--backend {backend} needs torch with CUDA, and torch {torch.__version__} is built without; install one "
            "of pytorch.org's CUDA builds"
        )
    if not torch.cuda.is_available():
        raise RefusedError(f"--backend {backend} needs an NVIDIA GPU, and torch sees none here; use ort-cpu")
    return torch


def gpu_names(torch: Any) -> tuple[str, str | None]:
    """The GPU's name with its memory, and the driver's version."""
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", gpu_driver(0)
