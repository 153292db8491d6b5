"""Gemma 1, 2 and 3: LLaMA's names, heads of a size of their own, and norms that multiply by 1 + weight."""

from __future__ import annotations

import dataclasses

from gatenorm_export.architectures.adapter import Adapter, Modules, TowerRow
from gatenorm_export.architectures.clip import SIGLIP_IN_GEMMA
from gatenorm_export.architectures.llama import GROUPED, INPUT_NORM, SELF_ATTN

_ROW = TowerRow(
    tensors=SELF_ATTN,
    modules=Modules("layers", "self_attn", "mlp.down_proj"),
    dims=dataclasses.replace(GROUPED, defaults=(("head_dim", 256),)),
    norm=INPUT_NORM,
    norm_offset=1.0,
)
# Gemma 2 and 3 norm what attention returns too.
_NORM_BEHIND = "post_attention_layernorm"
GEMMA = Adapter("gemma", (_ROW,))
GEMMA2 = Adapter(
    "gemma2", (dataclasses.replace(_ROW, modules=dataclasses.replace(_ROW.modules, norm_behind=_NORM_BEHIND)),)
)
GEMMA3_MULTIMODAL = Adapter(
    "gemma3, multimodal",
    (
        dataclasses.replace(
            _ROW,
            name="text",
            under="language_model",
            modules=Modules("language_model.layers", "self_attn", "mlp.down_proj", norm_behind=_NORM_BEHIND),
            dims=dataclasses.replace(
                GROUPED,
                section="text_config",
                defaults=(
                    ("hidden_size", 2304),
                    ("num_hidden_layers", 26),
                    ("num_attention_heads", 8),
                    ("num_key_value_heads", 4),
                    ("head_dim", 256),
                ),
            ),
        ),
        SIGLIP_IN_GEMMA,
    ),
)
