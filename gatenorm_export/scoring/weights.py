"""Stream the query and key weights of a checkpoint, one layer at a time, without torch and without a model object."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.architectures import adapter_for
from gatenorm_export.errors import InputError
from gatenorm_export.records import ModelSpec

Read = Callable[[str], tuple[np.ndarray, str]]
"""Tensor name -> array as stored or dequantised, and the name of the stored dtype."""


def query_key_weights(spec: ModelSpec) -> Iterator[tuple[int, np.ndarray, np.ndarray, str]]:
    """Yield (layer, query [n_heads * head_dim, d_model], key [n_kv_heads * head_dim, d_model], stored dtype).

    Raises:
        InputError: a tensor is missing, has another shape than the config says, or holds NaN or infinity; the text
            names file and tensor.
    """
    adapter = adapter_for(spec.architecture)
    gguf = spec.source == "gguf"
    names = (adapter.gguf_query, adapter.gguf_key) if gguf else (adapter.query, adapter.key)
    tower = spec.towers[0]
    expected = (
        (tower.n_heads * tower.head_dim, tower.d_model),
        (tower.n_kv_heads * tower.head_dim, tower.d_model),
    )
    with _open_gguf(spec) if gguf else _open_safetensors(spec) as read:
        for layer in range(spec.n_layers):
            arrays = []
            dtype = ""
            for template, shape in zip(names, expected, strict=True):
                name = template.format(layer=layer)
                array, dtype = read(name)
                _check(spec, name, array, shape)
                arrays.append(array)
            yield layer, arrays[0], arrays[1], dtype


def query_key_digest(spec: ModelSpec) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for _, query, key, _ in query_key_weights(spec):
        digest.update(query.tobytes())
        digest.update(key.tobytes())
    return digest.hexdigest()


def _check(spec: ModelSpec, name: str, array: np.ndarray, shape: tuple[int, int]) -> None:
    if array.shape != shape:
        raise InputError(f"{spec.path}: tensor {name} is {list(array.shape)}, the config says {list(shape)}")
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise InputError(f"{spec.path}: tensor {name} holds NaN or infinity; the checkpoint is damaged")


@contextlib.contextmanager
def _open_safetensors(spec: ModelSpec) -> Iterator[Read]:
    import ml_dtypes  # noqa: F401 (registers bfloat16 and the float8s with numpy, which safetensors asks for by name)
    from safetensors import SafetensorError, safe_open

    folder = Path(spec.path)
    with contextlib.ExitStack() as stack:
        holders: dict[str, tuple[Any, str]] = {}
        for file in spec.files:
            if not file.name.endswith(".safetensors"):
                continue
            try:
                handle = stack.enter_context(safe_open(folder / file.name, framework="np"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{folder / file.name}: not readable safetensors ({error}); copy it again") from error
            holders |= dict.fromkeys(handle.keys(), (handle, file.name))

        def read(name: str) -> tuple[np.ndarray, str]:
            if name not in holders:
                raise InputError(f"{folder}: tensor {name} is in none of the safetensors files")
            handle, file_name = holders[name]
            try:
                array = handle.get_tensor(name)
            except (SafetensorError, OSError, ValueError, TypeError) as error:
                raise InputError(f"{folder / file_name}: tensor {name} cannot be read ({error})") from error
            return array, str(array.dtype)

        yield read


@contextlib.contextmanager
def _open_gguf(spec: ModelSpec) -> Iterator[Read]:
    from gguf import GGUFReader, dequantize

    try:
        tensors = {tensor.name: tensor for tensor in GGUFReader(spec.path).tensors}
    except Exception as error:
        # The reader trusts lengths in the file; a damaged one surfaces as any of half a dozen types.
        raise InputError(f"{spec.path}: not readable GGUF ({type(error).__name__}: {error}); copy it again") from error

    def read(name: str) -> tuple[np.ndarray, str]:
        if name not in tensors:
            raise InputError(f"{spec.path}: tensor {name} is missing")
        tensor = tensors[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"{spec.path}: tensor {name} cannot be dequantised ({error})") from error
        return np.asarray(array), tensor.tensor_type.name

    yield read
