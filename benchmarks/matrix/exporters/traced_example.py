"""What a model is traced with: inputs, which of their lengths vary, and names of the graph's ends."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.matrix.exporters.cannot_export import CannotExport
from benchmarks.matrix.exporters.dynamic_cache_pytree import cache_of

Naming = Literal["torch", "optimum"]
# How the caller describes dynamic lengths. It shapes the graph: free and named ones become a symbol for each tensor,
# and Shape is read from several caches; shared ones are one symbol, and the past's length is read from the last cache.
Lengths = Literal["free", "named", "shared"]

# Lengths of the traced example: no two equal, none 1, so that the exporter confuses or specialises none of them.
BATCH, NEW, PAST = 2, 3, 5


@dataclass
class Example:
    """What a model is traced with: keyword arguments, their dynamic dimensions, and names of the graph's ends."""

    arguments: dict[str, Any]
    dynamic: dict[str, Any]
    input_names: list[str]
    output_names: list[str] | None
    cache: list[Any] = field(default_factory=list)


def is_decoder(model: Any) -> bool:
    """Whether the model generates text from tokens with a cache of its own."""
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def decoder_example(model: Any, naming: Naming = "torch", lengths: Lengths = "free", *, past: bool = True) -> Example:
    """Tokens, mask, positions where the model takes them, and a cache of the shapes that the model itself produces."""
    import torch

    batch, new, before, total = _dimensions(lengths)
    n_total = NEW + PAST if past else NEW
    arguments: dict[str, Any] = {
        "input_ids": torch.randint(3, model.config.vocab_size, (BATCH, NEW)),
        "attention_mask": torch.ones(BATCH, n_total, dtype=torch.int64),
    }
    dynamic: dict[str, Any] = {
        "input_ids": {0: batch, 1: new},
        "attention_mask": {0: batch, 1: total if past else new},
    }
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = torch.arange(n_total - NEW, n_total).expand(BATCH, NEW).contiguous()
        dynamic["position_ids"] = {0: batch, 1: new}
    names = list(arguments)
    outputs = ["logits"]
    cache: list[Any] = []
    if past:
        cache = example_cache(model)
        arguments["past_key_values"] = cache_of(cache)
        dynamic["past_key_values"] = [{0: batch, 2: before} for _ in cache]
        names += cache_names(len(cache), "past_key_values", naming)
        outputs += cache_names(len(cache), "present", naming)
    return Example(arguments, dynamic, names, outputs, cache)


def _dimensions(lengths: Lengths) -> tuple[Any, Any, Any, Any]:
    """Batch, new tokens, past, and their sum: torch must find out the sum itself."""
    from torch.export import Dim

    if lengths == "free":
        return (Dim.DYNAMIC,) * 4
    if lengths == "named":
        return "batch", "sequence", "past", "total"
    return Dim("batch"), Dim("sequence"), Dim("past"), Dim.DYNAMIC


def example_cache(model: Any) -> list[Any]:
    """Cache tensors of PAST tokens, key 0, value 0, key 1, ..., as a prefill of this model leaves them."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    tokens = torch.randint(3, model.config.vocab_size, (BATCH, PAST))
    returned = model(input_ids=tokens, past_key_values=cache, use_cache=True).past_key_values
    if not isinstance(returned, DynamicCache):
        raise CannotExport(f"{type(model).__name__} keeps its cache in {type(returned).__name__}, not in DynamicCache")
    tensors = [tensor for layer in returned.layers for tensor in (layer.keys, layer.values)]
    if any(tensor.dim() != 4 or tensor.shape[2] != PAST for tensor in tensors):
        raise CannotExport(f"{type(model).__name__}'s cache is not [batch, heads, past, head size] in every layer")
    return tensors


def cache_names(count: int, prefix: str, naming: Naming) -> list[str]:
    """Names of a flat cache: past_key_values_3 (torch) or past_key_values.1.value (optimum)."""
    if naming == "torch":
        return [f"{prefix}_{index}" for index in range(count)]
    return [f"{prefix}.{index // 2}.{('key', 'value')[index % 2]}" for index in range(count)]


def encoder_example(model: Any) -> Example:
    """Tokens and mask for a text encoder, pixels for an image encoder."""
    import torch
    from torch.export import Dim

    free = Dim.DYNAMIC
    parameters = inspect.signature(model.forward).parameters
    arguments: dict[str, Any]
    dynamic: dict[str, Any]
    if "pixel_values" in parameters:
        size = model.config.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        arguments = {"pixel_values": torch.rand(BATCH, model.config.num_channels, *size)}
        dynamic = {"pixel_values": {0: free}}
    elif "input_ids" in parameters:
        arguments = {
            "input_ids": torch.randint(3, model.config.vocab_size, (BATCH, NEW + PAST)),
            "attention_mask": torch.ones(BATCH, NEW + PAST, dtype=torch.int64),
        }
        if "token_type_ids" in parameters:
            arguments["token_type_ids"] = torch.zeros(BATCH, NEW + PAST, dtype=torch.int64)
        dynamic = {name: {0: free, 1: free} for name in arguments}
    else:
        raise CannotExport(f"{type(model).__name__} takes neither tokens nor pixels")
    first = next(iter(model(**arguments).keys()))
    return Example(arguments, dynamic, list(arguments), [first])


def flat_arguments(example: Example) -> list[Any]:
    """The example's tensors in the order of its input names."""
    tensors = [value for value in example.arguments.values() if hasattr(value, "dim")]
    return tensors + example.cache


def flat_dynamic(example: Example) -> list[dict[int, str]]:
    """The dynamic axes of the tensors, by name; lengths that differ have names that differ."""
    axes: list[dict[int, str]] = []
    for name in example.input_names:
        if name.startswith("past_key_values"):
            axes.append({0: "batch", 2: "past"})
        elif name == "pixel_values":
            axes.append({0: "batch"})
        else:
            axes.append({0: "batch", 1: "total" if name == "attention_mask" and example.cache else "sequence"})
    return axes


def flat_module(model: Any, example: Example) -> Any:
    """The model with tensors in and tensors out, for an exporter that knows no cache objects."""
    import torch

    names = [name for name, value in example.arguments.items() if hasattr(value, "dim")]
    with_cache = bool(example.cache)

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            arguments = dict(zip(names, tensors, strict=False))
            if not with_cache:
                return self.model(**arguments)[0]
            cache = cache_of(list(tensors[len(names) :]))
            result = self.model(**arguments, past_key_values=cache, use_cache=True)
            present = result.past_key_values
            return (result.logits, *(tensor for layer in present.layers for tensor in (layer.keys, layer.values)))

    return Flat().eval()
