"""The table of supported architectures: Hugging Face class name -> adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.adapter import Adapter, Modules
from gatenorm_export.architectures.gguf_files import gguf_config, gguf_towers
from gatenorm_export.architectures.guessing import guess_towers
from gatenorm_export.architectures.onnx_files import onnx_towers
from gatenorm_export.architectures.patterns import NamePatterns, towers_by_patterns
from gatenorm_export.architectures.resolving import resolve_towers
from gatenorm_export.architectures.table import ADAPTERS
from gatenorm_export.architectures.tower import LayerTensors, Layout, Tower
from gatenorm_export.checkpoints.tensors import TensorInfo
from gatenorm_export.errors import RefusedError

GGUF_ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi2": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gptj": "GPTJForCausalLM",
    "gptneox": "GPTNeoXForCausalLM",
    "starcoder": "GPTBigCodeForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "bloom": "BloomForCausalLM",
    "falcon": "FalconForCausalLM",
    "mpt": "MptForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "command-r": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "chatglm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "bert": "BertModel",
    "modern-bert": "ModernBertModel",
}
"""GGUF's ``general.architecture`` -> the Hugging Face name of the same model.

One that stands for several, such as deepseek2, is not here: its files are scored under GGUF's name.
"""


def adapter_for(architecture: str) -> Adapter:
    """The adapter of an architecture: what of its framework model is exported, silenced and repaired.

    Raises:
        RefusedError: there is none; the text lists the families that exist.
    """
    adapter = ADAPTERS.get(architecture)
    if adapter is None:
        # Of a family of several towers the first word is its own.
        families = ", ".join(sorted({adapter.family.partition(",")[0] for adapter in ADAPTERS.values()}))
        raise RefusedError(
            f"{architecture}: not an architecture whose framework model gatenorm knows; it takes those of {families} "
            "(score it, export it by other means, and prune the graph with `gatenorm prune GRAPH --layers`)"
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
    checkpoint in messages. An architecture that is not in the table is tried by names and shapes, and its tower's
    ``guessed`` says so. ``patterns`` name the weights of any model, known or not.

    Raises:
        InputError: the config lacks a dimension, or a tensor is missing or has another shape.
        RefusedError: which tensors are meant cannot be known.
    """
    if patterns is not None:
        if "general.architecture" in config:
            config = gguf_config(config)
        return towers_by_patterns(patterns, config, tensors, where=where)
    adapter = ADAPTERS.get(architecture)
    if adapter is None:
        return guess_towers(architecture, config, tensors, where=where)
    return resolve_towers(adapter, config, tensors, where=where)


def towers_of_gguf(
    fields: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    *,
    patterns: NamePatterns | None = None,
    where: str = "GGUF file",
) -> tuple[Tower, ...]:
    """The stack of attention sublayers in a GGUF file of any architecture, by llama.cpp's tensor names.

    ``fields`` is the file's metadata by key.

    Raises:
        InputError: metadata is missing or senseless, or a tensor is missing or has another shape.
        RefusedError: which tensors are meant cannot be known.
    """
    if patterns is not None:
        return towers_by_patterns(patterns, gguf_config(fields), tensors, where=where)
    return gguf_towers(fields, tensors, where=where)


def towers_of_onnx(
    fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo], *, where: str = "ONNX graph"
) -> tuple[Tower, ...]:
    """The stacks of attention sublayers in an ONNX graph: "" for self-attention, "cross" for cross-attention.

    ``fields`` and ``tensors`` are those of an ONNX source, whose weights are separated already.

    Raises:
        InputError: a tensor is missing or has another shape.
        RefusedError: the layers of a tower have heads of different sizes.
    """
    return onnx_towers(fields, tensors, where=where)


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
    "towers_of_onnx",
]
