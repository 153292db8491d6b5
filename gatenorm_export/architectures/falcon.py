"""Falcon: one fused matrix in groups of query heads, a key head and a value head; three ways to set their number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow
from gatenorm_export.architectures.layouts import Interleaved


def _groups(row: TowerRow, config: Mapping[str, Any], where: str) -> TowerRow:
    """Groups as configured (40B, 180B), one for all heads (7B), or one for each head (RW)."""
    if config.get("new_decoder_architecture") is True:
        return dataclasses.replace(row, dims=dataclasses.replace(row.dims, n_kv_heads="num_kv_heads"))
    if config.get("multi_query") in (None, True):
        return dataclasses.replace(row, dims=dataclasses.replace(row.dims, kv_heads=1))
    return row


FALCON = Adapter(
    "falcon",
    (
        TowerRow(
            tensors=("h.{layer}.self_attention.query_key_value.weight",),
            modules=Modules("h", "self_attention", "mlp.dense_4h_to_h"),
            dims=DimKeys(aliases=(("n_embed", "hidden_size"),)),
            layout=Interleaved("fused, interleaved by group of heads"),
            norm=("h.{layer}.ln_attn.weight", "h.{layer}.input_layernorm.weight"),
        ),
    ),
    variant=_groups,
)
