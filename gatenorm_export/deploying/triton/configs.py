"""What the configurations of all models have in common."""

from __future__ import annotations

from collections.abc import Sequence

from gatenorm_export.deploying.triton.config_text import Value, Word
from gatenorm_export.deploying.triton.request import Kind, Placement
from gatenorm_export.errors import RefusedError
from gatenorm_export.records import TensorSpec

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float64": "TYPE_FP64",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


def data_type(dtype: str) -> Word:
    """Triton's name of a type."""
    return Word(_TYPES[dtype])


def dims(shape: Sequence[int | str]) -> list[int]:
    """A shape with -1 for what is open."""
    return [length if isinstance(length, int) else -1 for length in shape]


def tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Value]:
    """An input or output; where Triton batches, it adds the first dimension by itself."""
    return {
        "name": spec.name,
        "data_type": data_type(spec.dtype),
        "dims": dims(spec.shape[1:] if batched else spec.shape),
    }


def instance_group(placement: Placement, kind: Kind, *, profiles: int = 0) -> list[Value]:
    """The instances of a model; an engine's use ``profiles`` optimisation profiles."""
    group: dict[str, Value] = {"count": placement.instances, "kind": Word("KIND_GPU" if kind == "gpu" else "KIND_CPU")}
    if kind == "gpu" and placement.gpus:
        group["gpus"] = list(placement.gpus)
    if profiles:
        group["profile"] = [str(index) for index in range(profiles)]
    return [group]


def batchable(specs: Sequence[TensorSpec]) -> bool:
    """Whether every tensor begins with an open dimension, as Triton wants it of a model that it makes batches for."""
    return all(spec.shape and isinstance(spec.shape[0], str) for spec in specs)


def check_batch(asked: int, largest: int | None, what: str) -> None:
    """Make sure that a model takes batches of ``asked``.

    Raises:
        RefusedError: it does not.
    """
    if largest is not None and asked > largest:
        raise RefusedError(f"--max-batch {asked}: {what} takes {largest} at most")
