"""Whether optimum's ORTModelForCausalLM runs a decoder: it makes the first, empty caches from config.json alone.

The rules are those of optimum-onnx 0.1. A key that a config leaves out has a default in transformers that differs from
family to family; where one is needed, nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatenorm_export.bundling.interface import GraphInterface
from gatenorm_export.model_configs import ModelConfigs
from gatenorm_export.records.bundle import Shape

_FED = {"input_ids", "attention_mask", "position_ids", "use_cache_branch"}
_OWN_HEAD_DIM = {"gemma", "gemma3_text", "gpt_oss", "nemotron"}
_GROUPED = {
    "arcee", "cohere", "deepseek_v3", "gemma", "gemma3_text", "glm", "gpt_oss", "granite", "helium", "llama", "mistral",
    "nemotron", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm",
}  # fmt: skip
"""Model types whose key and value heads optimum counts; of all others but three it takes the query heads."""

Lengths = tuple[int | None, ...]
"""Of a cache, with None for the batch, the past, and what the config does not tell."""


def optimum_reason(interface: GraphInterface, configs: ModelConfigs) -> str:
    """Why optimum's ``generate`` does not run this decoder with the config beside it; empty where nothing says so."""
    config = configs.config
    if not isinstance(config.get("model_type"), str):
        return "config.json names no model_type, by which it chooses a class"
    graph = interface.graph
    inputs = {spec.name: spec.shape for spec in graph.inputs}
    caches = {name: shape for name, shape in inputs.items() if _is_cache(name)}
    unfed = [name for name in inputs if name not in _FED and name not in caches]
    if unfed:
        return f"it feeds tokens, mask, positions and caches called .key and .value, and the graph takes {unfed[0]} too"
    if "logits" not in {spec.name for spec in graph.outputs}:
        return "it reads an output that is called logits, and the graph has none"
    if not caches:
        what = "no attention is left that keeps a cache" if not interface.kept else "the graph keeps no cache"
        return f"{what}, so its generate only works with use_cache=False"
    # Where the exporter left the size of a head open, the attention may have told it.
    shapes = caches | {cache.past: cache.shape for cache in interface.caches if cache.past in caches}
    for name, shape in shapes.items():
        made = _made(name, config, {name: len(shape) for name, shape in caches.items()})
        if not _fits(made, shape):
            return (
                f"of {config['model_type']} it makes caches {_words(made)} from config.json, and the graph's {name} is "
                f"{list(shape)}"
            )
    return ""


def _is_cache(name: str) -> bool:
    return ".key" in name or ".value" in name


def _made(name: str, config: Mapping[str, Any], ranks: Mapping[str, int]) -> Lengths:
    """The cache that optimum makes for the graph's input ``name``; ``ranks`` are those of all caches."""
    family, heads, size = config["model_type"], _heads(config), _head_size(config, name)
    if family == "bloom" and ranks.get("past_key_values.0.key") == 3:
        # The batch is a multiple of the heads.
        return (None, size, None) if ".key" in name else (None, None, size)
    if family == "gpt_bigcode" and any(".key_value" in cache for cache in ranks):
        doubled = 2 * size if size is not None else None
        return (None, None, doubled) if config.get("multi_query", True) else (None, heads, None, doubled)
    return (None, heads, None, size)


def _heads(config: Mapping[str, Any]) -> int | None:
    family, queries = config["model_type"], ModelConfigs(config, {}, {}).n_heads
    if family in _GROUPED:
        return _number(config, "num_key_value_heads")
    if family == "gemma3":
        return _number(_text(config), "num_key_value_heads")
    if family == "falcon":
        if config.get("new_decoder_architecture", False) or not config.get("multi_query", True):
            return _number(config, "num_kv_heads") or queries
        return 1
    if family == "gpt_bigcode":
        return 1 if config.get("multi_query", True) else queries
    return queries


def _head_size(config: Mapping[str, Any], name: str) -> int | None:
    family = config["model_type"]
    if family in _OWN_HEAD_DIM:
        return _number(config, "head_dim")
    if family == "gemma3":
        return _number(_text(config), "head_dim")
    if family == "deepseek_v3":
        rotated, plain = _number(config, "qk_rope_head_dim"), _number(config, "qk_nope_head_dim")
        if ".key" not in name:
            return _number(config, "v_head_dim")
        return rotated + plain if rotated is not None and plain is not None else None
    told = ModelConfigs(config, {}, {})
    return told.width // told.n_heads if told.width is not None and told.n_heads is not None else None


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("text_config")
    return found if isinstance(found, dict) else {}


def _number(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _fits(made: Lengths, shape: Shape) -> bool:
    return len(made) == len(shape) and all(
        expected is None or isinstance(length, str) or length == expected
        for expected, length in zip(made, shape, strict=True)
    )


def _words(made: Lengths) -> str:
    if len(made) == 4:
        return f"of {made[1] or 'some'} heads of {made[3] or 'some size'}"
    return f"of {len(made)} dimensions"
