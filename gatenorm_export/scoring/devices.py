"""Exact scores on a GPU, through torch; the same code runs on torch's CPU, which is how it is tested."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.errors import MissingPartError, RefusedError, UsageError, pip_install
from gatenorm_export.scoring.gate_norm import (
    UNIT_FLOAT32,
    Exact,
    Variant,
    check_shapes,
    exact_score,
    in_float32_range,
    is_large,
)

_TILE = 2048
_TERMS = 1024


@dataclass(frozen=True)
class Device:
    """A torch device: ``cuda:0``, or ``cpu`` in tests."""

    name: str

    @property
    def words(self) -> str:
        """The device and what it is, for records."""
        import torch

        return f"{self.name} ({torch.cuda.get_device_name(self.name)})" if self.name.startswith("cuda") else self.name


def pick_device(asked: str) -> Device | None:
    """The GPU to compute on, None for numpy on the CPU. ``auto`` takes the first GPU that torch sees, if any.

    Raises:
        UsageError: ``asked`` is none of auto, cpu, cuda and cuda:N.
        RefusedError: there is no such GPU.
        MissingPartError: a GPU is asked for without torch.
    """
    if asked == "cpu":
        return None
    match = re.fullmatch(r"auto|cuda(?::(\d{1,3}))?", asked)
    if match is None:
        raise UsageError(f"--device {asked}: there is no such device; give auto, cpu, cuda or cuda:N")
    if asked == "auto" and not _may_have_gpu():
        return None
    try:
        import torch
    except ImportError as error:
        if asked == "auto":
            return None
        raise MissingPartError(f"--device {asked} needs torch: {pip_install('export')}", "export") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(match[1] or 0)
    if number < count:
        return Device(f"cuda:{number}")
    if asked == "auto":
        return None
    there = f"torch sees {count} of them" if count else "torch sees none here"
    raise RefusedError(f"--device {asked}: there is no such GPU, {there}; give --device cpu or auto")


def _may_have_gpu() -> bool:
    """Whether importing torch is worth its second: it is loaded already, or the driver's device is there."""
    return "torch" in sys.modules or any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def device_score(
    device: Device, query: np.ndarray, key: np.ndarray, *, head_dim: int, variant: Variant = "all-heads"
) -> Exact:
    """The exact score of one layer on ``device``; arrays and formula as in :func:`exact_score`.

    Products are float32 in sums of at most 1024 terms that float64 adds up, so the bound on rounding is the CPU's; see
    :func:`full_float32`. Small layers, the per-head variant and what leaves the range of float32 stay with numpy:
    copying them takes longer than scoring.
    """
    check_shapes(query, key, head_dim)
    if variant == "all-heads" and is_large(query, key):
        found = product_score(device, query, key, head_dim=head_dim)
        if in_float32_range(found.score, key.shape[1]):
            return found
    return exact_score(query, key, head_dim=head_dim, variant=variant)


@contextlib.contextmanager
def full_float32(device: Device | None) -> Iterator[None]:
    """Keep TF32, which has ten bits of fraction, out of torch's float32 products while the block runs."""
    if device is None:
        yield
        return
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def product_score(device: Device, query: np.ndarray, key: np.ndarray, *, head_dim: int) -> Exact:
    """The score of one layer, all heads together, by products on ``device`` whatever its size; float32 on the way."""
    rows, width = key.shape
    group = len(query) // rows
    a, b = _copy(device, query), _copy(device, key)
    norms = math.sqrt(_squares(a)) * math.sqrt(_squares(b))
    if group > 1:
        a = _group_sum(a, rows, head_dim)
    gamma = _TERMS * UNIT_FLOAT32 / (1 - _TERMS * UNIT_FLOAT32)
    if rows < width:
        first, second = (_sum_of_products(part.T, part.T) for part in (a, b))
        squared = float((first * second).sum())
        lengths = [gram.diagonal().clamp(min=0).sqrt() for gram in (first, second)]
        off = float(lengths[0] @ second.abs() @ lengths[0] + lengths[1] @ first.abs() @ lengths[1])
        share = gamma * off / squared if squared > 0 else 0.0
        rounding = share / 2 + share * share
    else:
        squared = 0.0
        for left in range(0, width, _TILE):
            for right in range(0, width, _TILE):
                tile = _sum_of_products(a[:, left : left + _TILE], b[:, right : right + _TILE])
                squared += float(tile.square().sum())
        rounding = gamma * norms / math.sqrt(squared) if squared > 0 else 0.0
    squared = max(squared, 0.0) if math.isfinite(squared) else squared
    score = math.sqrt(squared) if math.isfinite(squared) else squared
    if group > 1 and score > 0:
        rounding += group * UNIT_FLOAT32 * math.sqrt(group) * norms / score
    return Exact(score, 1.001 * rounding, f"float32 in sums of {_TERMS}, added up in float64")


def _copy(device: Device, array: np.ndarray) -> Any:
    """The array on the device, in its stored type: bfloat16 crosses the bus as two bytes."""
    import torch

    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).to(device.name).view(torch.bfloat16)
    return torch.from_numpy(array).to(device.name)


def _group_sum(query: Any, rows: int, head_dim: int) -> Any:
    """The query heads of each key head added up in float32, a head at a time so that nothing is held twice."""
    group = len(query) // rows
    heads = query.reshape(rows // head_dim, group, head_dim, query.shape[1])
    total = heads[:, 0].float()
    for member in range(1, group):
        total = total + heads[:, member]
    return total.reshape(rows, query.shape[1])


def _sum_of_products(a: Any, b: Any) -> Any:
    """a^T b in float64 from float32 products over at most 1024 rows each."""
    import torch

    total = torch.zeros((a.shape[1], b.shape[1]), dtype=torch.float64, device=a.device)
    for start in range(0, len(a), _TERMS):
        total += a[start : start + _TERMS].float().T @ b[start : start + _TERMS].float()
    return total


def _squares(array: Any) -> float:
    """The squared Frobenius norm."""
    return sum(float(array[start : start + 1024].double().square().sum()) for start in range(0, len(array), 1024))
