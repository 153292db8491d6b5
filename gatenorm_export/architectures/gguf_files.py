"""GGUF: llama.cpp's own tensor names, the same for all architectures, and dimensions from the file's metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gatenorm_export.architectures.deepseek import LowRank
from gatenorm_export.architectures.layouts import SEPARATE, Stacked
from gatenorm_export.architectures.resolving import NUMBER, Tensors, check_tensors, positive, shown
from gatenorm_export.architectures.tower import LayerTensors, Layout, Tower
from gatenorm_export.errors import InputError, RefusedError

# llama.cpp stores the rows of each LLaMA head in another order, the same for query and key, and the product of the two
# does not change when both are reordered alike: scores need no undoing of it. Its converters bring every fused weight
# into the order q, k, v and turn GPT-2's; they add Gemma's 1 to norm weights.
_SEPARATE = ("attn_q", "attn_k")
_FUSED = ("attn_qkv",)
# Blocks that have a recurrence in the place of attention; its input projection is called attn_qkv in some files.
_NOT_ATTENTION = re.compile(rf"blk\.{NUMBER}\.(ssm|shortconv|time_mix)\w*(\.|$)")
_NEXT_TOKENS = re.compile(rf"blk\.{NUMBER}\.nextn\.")
_BLOCK = re.compile(rf"blk\.{NUMBER}\.(\w+)\.weight")


def gguf_towers(fields: Mapping[str, Any], tensors: Tensors, *, where: str) -> tuple[Tower, ...]:
    """The tower of a GGUF file.

    Raises:
        InputError: metadata is missing or senseless, or a tensor is missing or has another shape.
        RefusedError: query and key are kept in a way that llama.cpp's names do not tell.
    """
    kind = str(fields.get("general.architecture"))
    blocks: dict[int, set[str]] = {}
    for name in tensors:
        match = _BLOCK.fullmatch(name)
        if match:
            blocks.setdefault(int(match[1]), set()).add(match[2])
    if not blocks:
        raise RefusedError(f"{where}: GGUF architecture {kind} has no tensors blk.N.*; it holds {shown(tensors)}")
    recurrent = {int(match[1]) for name in tensors if (match := _NOT_ATTENTION.match(name))}
    n_layers = positive(fields, f"{kind}.block_count", where)
    last = max(blocks)
    if n_layers > last + 1:
        raise InputError(f"{where}: {kind}.block_count is {n_layers}, but tensors blk.{last + 1}.* are missing")
    # Layers that predict further tokens come last, and count as blocks.
    n_layers -= len({match[1] for name in tensors if (match := _NEXT_TOKENS.match(name))})
    heads = _per_layer(fields, f"{kind}.attention.head_count", n_layers, where)
    kv_heads = _per_layer(fields, f"{kind}.attention.head_count_kv", n_layers, where, heads)
    attentive = []
    for layer in range(n_layers):
        has = blocks.get(layer, set())
        without = heads[layer] == 0 or kv_heads[layer] == 0 or layer in recurrent
        if not (without and not has.issuperset(_SEPARATE)):
            attentive.append(layer)
    if not attentive:
        raise RefusedError(f"{where}: GGUF architecture {kind} has no layer with attention")
    layout, parts = _layout(fields, kind, blocks.get(attentive[0], set()), where)
    d_model = positive(fields, f"{kind}.embedding_length", where)
    n_heads, n_kv_heads = heads[attentive[0]], kv_heads[attentive[0]]
    if isinstance(layout, LowRank):
        head_dim, n_kv_heads = layout.nope + layout.rope, n_heads
        kv_heads = heads
    else:
        head_dim = positive(fields, f"{kind}.attention.key_length", where, max(d_model // n_heads, 1))
    for layer in attentive:
        if kv_heads[layer] == 0 or heads[layer] % kv_heads[layer]:
            raise InputError(
                f"{where}: layer {layer} has {heads[layer]} query heads, which do not divide among {kv_heads[layer]} "
                "key heads"
            )
    norms = ("attn_norm_2", "attn_norm") if kind == "falcon" else ("attn_norm",)
    layers = tuple(
        LayerTensors(
            layer,
            tuple(f"blk.{layer}.{part}.weight" for part in parts),
            next((f"blk.{layer}.{norm}.weight" for norm in norms if norm in blocks.get(layer, set())), None),
            None if heads[layer] == n_heads else heads[layer],
            None if kv_heads[layer] == n_kv_heads else kv_heads[layer],
        )
        for layer in attentive
    )
    tower = Tower("", n_layers, d_model, n_heads, n_kv_heads, head_dim, layout, layers)
    check_tensors(tower, tensors, where)
    return (tower,)


def gguf_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions in a GGUF file's metadata under names that a Hugging Face config has."""
    kind = str(fields.get("general.architecture"))
    keys = {
        "num_hidden_layers": "block_count",
        "hidden_size": "embedding_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
    }
    return {name: fields[f"{kind}.{key}"] for name, key in keys.items() if f"{kind}.{key}" in fields}


def _layout(fields: Mapping[str, Any], kind: str, has: set[str], where: str) -> tuple[Layout, tuple[str, ...]]:
    if "attn_kv_a_mqa" in has:
        direct = "attn_q" in has
        absorbed = "attn_kv_b" not in has
        rope = positive(fields, f"{kind}.rope.dimension_count", where)
        # Newer files describe the absorbed form, a single key head of latents, and keep the plain one under _mla.
        size, value = (
            positive(
                fields,
                f"{kind}.attention.{key}_length{'_mla' if f'{kind}.attention.{key}_length_mla' in fields else ''}",
                where,
            )
            for key in ("key", "value")
        )
        if size <= rope:
            raise InputError(f"{where}: {kind}.rope.dimension_count is {rope}, and heads have only {size} rows")
        layout = LowRank(
            None if direct else positive(fields, f"{kind}.attention.q_lora_rank", where),
            positive(fields, f"{kind}.attention.kv_lora_rank", where),
            size - rope,
            rope,
            value,
            absorbed,
        )
        query = ("attn_q",) if direct else ("attn_q_a", "attn_q_b")
        return layout, (*query, "attn_kv_a_mqa", "attn_k_b" if absorbed else "attn_kv_b")
    if has.issuperset(_SEPARATE):
        return SEPARATE, _SEPARATE
    if has.issuperset(_FUSED):
        return Stacked(), _FUSED
    raise InputError(
        f"{where}: tensor blk.N.attn_q.weight, blk.N.attn_k.weight or blk.N.attn_qkv.weight is missing; the first "
        f"block with attention holds {', '.join(sorted(has)) or 'nothing'}"
    )


def _per_layer(
    fields: Mapping[str, Any], key: str, n_layers: int, where: str, default: Sequence[int] | None = None
) -> Sequence[int]:
    """One number, or one for each layer; in a list, 0 stands for a block without attention."""
    value = fields.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, list):
        if len(value) < n_layers or any(type(item) is not int or item < 0 for item in value):
            raise InputError(
                f"{where}: {key} is {str(value)[:80]}, where a number for each of {n_layers} layers is needed"
            )
        return value
    return [positive(fields, key, where)] * n_layers
