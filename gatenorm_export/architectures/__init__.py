"""The table of supported architectures: Hugging Face class name -> adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.adapter import Adapter, Modules
from gatenorm_export.architectures.patterns import NamePatterns
from gatenorm_export.architectures.resolving import resolve_towers
from gatenorm_export.architectures.table import ADAPTERS
from gatenorm_export.architectures.tower import LayerTensors, Layout, Tower
from gatenorm_export.checkpoints.tensors import TensorInfo
from gatenorm_export.errors import InputError

GGUF_ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""GGUF's ``general.architecture`` -> the Hugging Face name of the same model."""


def adapter_for(architecture: str) -> Adapter:
    """The adapter of an architecture.

    Raises:
        InputError: there is none; the text lists what exists.
    """
    adapter = ADAPTERS.get(architecture)
    if adapter is None:
        raise InputError(
            f"{architecture}: not a decoder that gatenorm scores and exports; it takes {', '.join(sorted(ADAPTERS))} "
            "(an ONNX graph of any model can still be pruned with `gatenorm prune --layers`)"
        )
    return adapter


def towers_of(
    architecture: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    patterns: NamePatterns | None = None,
    where: str = "config.json",
) -> tuple[Tower, ...]:
    """The stacks of attention sublayers in a checkpoint: dimensions, and the tensors that hold query and key.

    ``config`` is the content of config.json, ``tensors`` the table of the checkpoint's tensors; ``where`` names the
    checkpoint in messages.

    Raises:
        InputError: the config lacks a dimension, or a tensor is missing or has another shape.
        RefusedError: which tensors are meant cannot be known.
    """
    if patterns is not None:
        raise NotImplementedError
    return resolve_towers(adapter_for(architecture), config, tensors, where=where)


def towers_of_gguf(fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[Tower, ...]:
    """The stacks of attention sublayers in a GGUF file, by llama.cpp's tensor names."""
    raise NotImplementedError


__all__ = [
    "ADAPTERS",
    "GGUF_ARCHITECTURES",
    "Adapter",
    "LayerTensors",
    "Layout",
    "Modules",
    "NamePatterns",
    "Tower",
    "adapter_for",
    "towers_of",
    "towers_of_gguf",
]
