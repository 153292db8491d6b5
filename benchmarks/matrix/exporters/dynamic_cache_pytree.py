"""How torch.export sees a transformers DynamicCache: as the flat list key 0, value 0, key 1, value 1, ...

transformers brings a registration of its own, which torch 2.13 cannot export ("lifted_tensor_8 is not in the constants
dictionary"); this one carries tensors only and rebuilds the layers on the other side.
"""

from __future__ import annotations

from typing import Any


def register_dynamic_cache() -> None:
    """Make DynamicCache a pytree node of torch, once in a process."""
    import torch
    from transformers import DynamicCache

    pytree = torch.utils._pytree
    registered = pytree.SUPPORTED_NODES.get(DynamicCache)
    if registered is not None and registered.flatten_fn is _flatten:
        return
    forget_dynamic_cache()
    pytree.register_pytree_node(DynamicCache, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys)


def forget_dynamic_cache() -> None:
    """Undo any registration: torch keeps the first one, and the exporters of transformers bring their own."""
    import torch
    from transformers import DynamicCache

    if DynamicCache in torch.utils._pytree.SUPPORTED_NODES:
        torch.utils._pytree._deregister_pytree_node(DynamicCache)


def _flatten(cache: Any) -> tuple[list[Any], None]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)], None


def _flatten_with_keys(cache: Any) -> tuple[list[tuple[Any, Any]], None]:
    from torch.utils._pytree import SequenceKey

    return [(SequenceKey(index), tensor) for index, tensor in enumerate(_flatten(cache)[0])], None


def _unflatten(tensors: Any, _: Any) -> Any:
    return cache_of(list(tensors))


def cache_of(tensors: list[Any]) -> Any:
    """A DynamicCache that holds key 0, value 0, key 1, value 1, ... of the list."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    # One class for every layer: sliding layers drop old tokens in Python, which a graph with a growing cache must not.
    cache.layers = []
    for key, value in zip(tensors[::2], tensors[1::2], strict=True):
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = key, value, True
        layer.dtype, layer.device = key.dtype, key.device
        cache.layers.append(layer)
    return cache
