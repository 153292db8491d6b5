"""GPT-NeoX (Pythia) and BLOOM: one fused matrix, q, k, v of each head in turn."""

from __future__ import annotations

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow
from gatenorm_export.architectures.layouts import Interleaved
from gatenorm_export.architectures.llama import INPUT_NORM

GPT_NEOX = Adapter(
    "gpt-neox",
    (
        TowerRow(
            tensors=("layers.{layer}.attention.query_key_value.weight",),
            modules=Modules("layers", "attention", "mlp.dense_4h_to_h"),
            layout=Interleaved(),
            norm=INPUT_NORM,
        ),
    ),
)
BLOOM = Adapter(
    "bloom",
    (
        TowerRow(
            tensors=("h.{layer}.self_attention.query_key_value.weight",),
            # BLOOM's attention module adds the residual itself: only its output projection can be silenced.
            modules=Modules("h", "self_attention.dense", "mlp.dense_4h_to_h", projection_only=True),
            dims=DimKeys(
                n_layers="n_layer",
                n_heads="n_head",
                aliases=(
                    ("num_hidden_layers", "n_layer"),
                    ("num_attention_heads", "n_head"),
                    ("n_embed", "hidden_size"),
                ),
            ),
            layout=Interleaved(),
            norm=("h.{layer}.input_layernorm.weight",),
        ),
    ),
)
