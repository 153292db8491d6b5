"""The table of supported architectures: Hugging Face class name -> adapter."""

from gatenorm_export.architectures.adapter import Adapter
from gatenorm_export.architectures.llama import LLAMA
from gatenorm_export.errors import InputError

ADAPTERS: dict[str, Adapter] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
}

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


__all__ = ["ADAPTERS", "GGUF_ARCHITECTURES", "Adapter", "adapter_for"]
