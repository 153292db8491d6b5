"""CLIP and SigLIP: a text and a vision tower of the same blocks, also alone."""

from __future__ import annotations

import dataclasses

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow

# transformers leaves out of a nested config what is its class's default.
_BASE = (("hidden_size", 768), ("num_hidden_layers", 12), ("num_attention_heads", 12))
_CLIP_TEXT = (("hidden_size", 512), ("num_hidden_layers", 12), ("num_attention_heads", 8))
SIGLIP_VISION_DIMS = DimKeys(section="vision_config", defaults=_BASE)


def _row(tower: str, dims: DimKeys, name: str = "") -> TowerRow:
    layers = f"{tower}_model.encoder.layers"
    return TowerRow(
        name=name,
        tensors=(f"{layers}.{{layer}}.self_attn.q_proj.weight", f"{layers}.{{layer}}.self_attn.k_proj.weight"),
        modules=Modules(layers, "self_attn", "mlp.fc2"),
        dims=dims,
        norm=(f"{layers}.{{layer}}.layer_norm1.weight",),
    )


SIGLIP_VISION = _row("vision", DimKeys())
_TEXT_ALONE = _row("text", DimKeys())
_VISION_OF_TWO = _row("vision", SIGLIP_VISION_DIMS)

CLIP = Adapter(
    "clip",
    (
        _row("text", DimKeys(section="text_config", defaults=_CLIP_TEXT), "text"),
        dataclasses.replace(_VISION_OF_TWO, name="vision"),
    ),
)
CLIP_TEXT = Adapter("clip, text", (_TEXT_ALONE,))
CLIP_VISION = Adapter("clip, vision", (SIGLIP_VISION,))
CLIP_CLASSIFIER = Adapter("clip, vision", (_VISION_OF_TWO,))
SIGLIP = Adapter(
    "siglip",
    (
        _row("text", DimKeys(section="text_config", defaults=_BASE), "text"),
        dataclasses.replace(_VISION_OF_TWO, name="vision"),
    ),
)
