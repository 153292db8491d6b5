"""LLaMA and everything that kept its names: Mistral, Qwen2, Qwen3, SmolLM."""

from __future__ import annotations

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow

GROUPED = DimKeys(n_kv_heads="num_key_value_heads", head_dim="head_dim")

_LLAMA_ROW = TowerRow(
    tensors=("layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.self_attn.k_proj.weight"),
    modules=Modules("layers", "self_attn", "mlp.down_proj"),
    dims=GROUPED,
    norm=("layers.{layer}.input_layernorm.weight",),
)
LLAMA = Adapter(family="llama", towers=(_LLAMA_ROW,))
