"""What a build takes of memory and disk, told before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from gatenorm_export.errors import OutputError, RefusedError
from gatenorm_export.memory import free_memory

# Measured with TensorRT-RTX 1.7.1 on Linux. The builder's process takes 245 MB on a graph of 33 kB of weights, and
# 4,307 MB on 80 products of 1,342 MB together: 3.0 bytes for each byte of weights. SmolLM2-135M, of 7,426 nodes, takes
# up to 2,716 MB with weights of 538 MB (fp32) and 2,130 MB with 269 MB (fp16), which leaves 780 to 1,070 MB for its
# nodes. With a decode step of 1 it takes 3,696 MB in fp32, since the matrices are there twice.
_BASE_BYTES, _NODE_BYTES = 250_000_000, 145_000
_MEMORY_SHARED, _MEMORY_TWICE = 3.1, 4.6
# The engines of SmolLM2-135M, of 30 attention sublayers: 582 MB in fp32, 296 MB in fp16, and 1,007 MB in fp32 with the
# matrices twice. Beside their weights, those of tiny models of 3 to 5 sublayers take 5.6 to 15 MB, where ai.onnx
# Attention was lowered the most: 10.5 MB of 3 and 15 MB of 5.
_DISK_SHARED, _DISK_TWICE = 1.05, 1.78
_PLAN_BYTES, _SUBLAYER_BYTES = 4_000_000, 2_500_000


def memory_needed(weight_bytes: int, n_nodes: int, *, shared: bool) -> int:
    """Bytes of memory that parsing and building take; ``shared`` says whether the profiles share the weights."""
    weights = round(weight_bytes * (_MEMORY_SHARED if shared else _MEMORY_TWICE))
    return _BASE_BYTES + n_nodes * _NODE_BYTES + weights


def engine_size(weight_bytes: int, n_attention: int, *, shared: bool) -> int:
    """Bytes of the engine, at most."""
    weights = round(weight_bytes * (_DISK_SHARED if shared else _DISK_TWICE))
    return _PLAN_BYTES + n_attention * _SUBLAYER_BYTES + weights


def check_memory(graph: Path, weight_bytes: int, n_nodes: int, *, shared: bool, halved: bool) -> None:
    """Refuse a build that memory most likely does not hold; ``halved``: the weights are in half precision already.

    Raises:
        RefusedError: it does not; the text has both figures.
    """
    needed, free = memory_needed(weight_bytes, n_nodes, shared=shared), free_memory()
    if free is not None and free < needed:
        half = "" if halved else "build in half precision (--precision fp16), "
        raise RefusedError(
            f"{graph}: building takes about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; make "
            f"room, {half}or try it with --despite-memory"
        )


def check_disk(folder: Path, weight_bytes: int, n_attention: int, *, shared: bool) -> None:
    """Refuse a build whose engine the disk does not hold; ``n_attention`` sublayers have a cache.

    Raises:
        OutputError: it does not; the text has both figures.
    """
    needed, free = engine_size(weight_bytes, n_attention, shared=shared), free_disk(folder)
    if free < needed:
        raise OutputError(
            f"{folder}: the engine takes up to {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; make room, "
            "or choose another disk"
        )


def free_disk(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or will be made."""
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
