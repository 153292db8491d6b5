"""Describe a decoder to onnxruntime-genai where nobody has: an exporter's graph, or one that was pruned. Pure.

genai's plain decoder takes tokens, mask and positions, and for every layer one key and one value
[batch, heads, past, size], all of one shape and type, under names that differ in one number. Its type ``decoder``
stands for that and nothing else; the types named after families also stand for habits of genai's own model builder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gatenorm_export.model_configs import ModelConfigs
from gatenorm_export.records import CacheTensor, Decoding

# What genai's search takes over from a generation config; all else is left at its defaults.
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size", "num_beams")


def genai_config(graph: str, decoding: Decoding, configs: ModelConfigs, n_layers: int) -> dict[str, Any] | str:
    """The genai_config.json for ``graph``, or why genai's plain decoder does not take it.

    ``n_layers`` is the number of layers of the unpruned model, for graphs whose caches kept their numbers.
    """
    names = _names(decoding.caches)
    if isinstance(names, str):
        return names
    if decoding.mask_input is None:
        return "it takes no mask"
    if decoding.max_positions is None:
        return "no config tells how long a sequence may be"
    if not decoding.eos_token_ids:
        return "no config tells the token that ends a sequence"
    keys = [cache for cache in decoding.caches if cache.role == "key"]
    heads, size = (keys[0].shape[1], keys[0].shape[3]) if keys else (1, 1)
    inputs = {"input_ids": decoding.token_input, "attention_mask": decoding.mask_input}
    if decoding.position_input is not None:
        inputs["position_ids"] = decoding.position_input
    eos = list(decoding.eos_token_ids)
    model = {
        "type": "decoder",
        "vocab_size": decoding.vocab_size,
        "context_length": decoding.max_positions,
        "bos_token_id": _or(decoding.bos_token_id, eos[0]),
        "eos_token_id": eos if len(eos) > 1 else eos[0],
        "pad_token_id": _or(decoding.pad_token_id, eos[0]),
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": graph,
            "head_size": size,
            "hidden_size": configs.width or int(heads) * int(size),
            "num_attention_heads": configs.n_heads or heads,
            "num_key_value_heads": heads,
            "num_hidden_layers": len(keys) if names.dense else n_layers,
            "inputs": inputs | names.past,
            "outputs": {"logits": decoding.logits_output} | names.present,
        },
    }
    search = {key: configs.generation[key] for key in _SEARCH if configs.generation.get(key) is not None}
    # The graph gives caches that are longer by a step: they cannot share one buffer.
    fixed = {"max_length": decoding.max_positions, "past_present_share_buffer": False}
    return {"model": model, "search": {"do_sample": False} | search | fixed}


class _Names:
    """The patterns of the cache names, and whether their numbers run from 0 without a gap."""

    def __init__(self, past: dict[str, str], present: dict[str, str], dense: bool) -> None:
        self.past, self.present, self.dense = past, present, dense


def _names(caches: Sequence[CacheTensor]) -> _Names | str:
    if not caches:
        return _Names({}, {}, dense=True)
    past: dict[str, str] = {}
    present: dict[str, str] = {}
    numbers: set[tuple[int, ...]] = set()
    for role in ("key", "value"):
        of_role = [cache for cache in caches if cache.role == role]
        if 2 * len(of_role) != len(caches):
            return "its caches are not one key and one value for each layer"
        for names, found, prefix in (
            ([cache.past for cache in of_role], past, "past"),
            ([cache.present for cache in of_role], present, "present"),
        ):
            pattern = _pattern(names)
            if pattern is None:
                return f"its cache names ({names[0]}, ...) do not differ in one number"
            found[f"{prefix}_{role}_names"] = pattern[0]
            numbers.add(pattern[1])
    if len(numbers) != 1:
        return "keys, values, pasts and presents are not numbered alike"
    first = caches[0]
    for cache in caches:
        if cache.batch_axis != 0 or cache.length_axis != 2 or len(cache.shape) != 4:
            return f"its caches are not [batch, heads, past, size]: {cache.past} is {list(cache.shape)}"
        if cache.dtype != first.dtype or (cache.shape[1], cache.shape[3]) != (first.shape[1], first.shape[3]):
            return f"its caches differ: {first.past} is {list(first.shape)}, {cache.past} {list(cache.shape)}"
    if not isinstance(first.shape[1], int) or not isinstance(first.shape[3], int):
        return f"the heads of its caches have no fixed number and size: {list(first.shape)}"
    only = next(iter(numbers))
    return _Names(past, present, dense=only == tuple(range(len(only))))


def _pattern(names: Sequence[str]) -> tuple[str, tuple[int, ...]] | None:
    """The one pattern with ``%d`` that all names follow, and their numbers in order."""
    split = [re.split(r"(\d+)", name) for name in names]
    for place in range(1, len(split[0]), 2):
        frames = {(*parts[:place], *parts[place + 1 :]) for parts in split if len(parts) == len(split[0])}
        numbers = tuple(int(parts[place]) for parts in split if len(parts) == len(split[0]))
        if len(frames) == 1 and len(numbers) == len(names) and len(set(numbers)) == len(numbers):
            pattern = "".join([*split[0][:place], "%d", *split[0][place + 1 :]])
            return (pattern, tuple(sorted(numbers))) if "%" not in names[0] else None
    return None


def _or(token: int | None, other: int) -> int:
    return other if token is None else token
