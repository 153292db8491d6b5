"""MPT: one fused matrix, stacked."""

from __future__ import annotations

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow
from gatenorm_export.architectures.layouts import Stacked

MPT = Adapter(
    "mpt",
    (
        TowerRow(
            tensors=("blocks.{layer}.attn.Wqkv.weight",),
            modules=Modules("blocks", "attn", "ffn.down_proj"),
            dims=DimKeys(
                n_layers="n_layers",
                d_model="d_model",
                n_heads="n_heads",
                aliases=(
                    ("num_hidden_layers", "n_layers"),
                    ("hidden_size", "d_model"),
                    ("num_attention_heads", "n_heads"),
                ),
            ),
            layout=Stacked(),
            norm=("blocks.{layer}.norm_1.weight",),
        ),
    ),
)
