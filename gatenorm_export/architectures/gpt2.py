"""GPT-2 (fused and transposed), GPT-Neo (separate) and GPT-BigCode (fused, in one of two orders)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow
from gatenorm_export.architectures.layouts import Interleaved, Stacked

GPT2_ALIASES = (("hidden_size", "n_embd"), ("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer"))
GPT2_DIMS = DimKeys(n_layers="n_layer", d_model="n_embd", n_heads="n_head", aliases=GPT2_ALIASES)
LN_1 = ("h.{layer}.ln_1.weight",)

GPT2 = Adapter(
    "gpt2",
    (
        TowerRow(
            tensors=("h.{layer}.attn.c_attn.weight",),
            modules=Modules("h", "attn", "mlp.c_proj", down_transposed=True),
            dims=GPT2_DIMS,
            layout=Stacked(transposed=True),
            norm=LN_1,
        ),
    ),
)
GPT_NEO = Adapter(
    "gpt-neo",
    (
        TowerRow(
            tensors=("h.{layer}.attn.attention.q_proj.weight", "h.{layer}.attn.attention.k_proj.weight"),
            modules=Modules("h", "attn", "mlp.c_proj"),
            dims=DimKeys(
                n_layers="num_layers",
                n_heads="num_heads",
                aliases=(("num_hidden_layers", "num_layers"), ("num_attention_heads", "num_heads")),
            ),
            norm=LN_1,
        ),
    ),
)


def _heads(row: TowerRow, config: Mapping[str, Any], where: str) -> TowerRow:
    """One key head for all, stacked behind the query heads; or as many as query heads, interleaved."""
    if config.get("multi_query") in (None, True):
        return dataclasses.replace(row, layout=Stacked(), dims=dataclasses.replace(row.dims, kv_heads=1))
    return row


GPT_BIGCODE = Adapter(
    "gpt-bigcode",
    (
        TowerRow(
            tensors=("h.{layer}.attn.c_attn.weight",),
            modules=Modules("h", "attn", "mlp.c_proj"),
            dims=GPT2_DIMS,
            layout=Interleaved(),
            norm=LN_1,
        ),
    ),
    variant=_heads,
)
