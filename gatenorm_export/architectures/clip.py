"""CLIP and SigLIP: a text and a vision tower of the same blocks, also alone."""

from __future__ import annotations

import dataclasses

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow

# transformers leaves out of a nested config what is its class's default.
_BASE = (("hidden_size", 768), ("num_hidden_layers", 12), ("num_attention_heads", 12))
_CLIP_TEXT = (("hidden_size", 512), ("num_hidden_layers", 12), ("num_attention_heads", 8))
_TEXT, _VISION = "text_model", "vision_model"

# A tower alone is saved under its name by transformers 4 and without it by transformers 5.
_LAYERS = "encoder.layers"
_ALONE = TowerRow(
    tensors=(f"{_LAYERS}.{{layer}}.self_attn.q_proj.weight", f"{_LAYERS}.{{layer}}.self_attn.k_proj.weight"),
    modules=Modules(_LAYERS, "self_attn", "mlp.fc2"),
    norm=(f"{_LAYERS}.{{layer}}.layer_norm1.weight",),
)


def _in(parent: str, row: TowerRow = _ALONE) -> TowerRow:
    return dataclasses.replace(row, modules=dataclasses.replace(row.modules, blocks=f"{parent}.{_LAYERS}"))


def _of_two(parent: str, name: str, defaults: tuple[tuple[str, int], ...]) -> TowerRow:
    dims = DimKeys(section=f"{name}_config", defaults=defaults)
    return dataclasses.replace(_in(parent), name=name, under=parent, dims=dims)


_SIGLIP_VISION = _of_two(_VISION, "vision", _BASE)

CLIP = Adapter("clip", (_of_two(_TEXT, "text", _CLIP_TEXT), _SIGLIP_VISION))
SIGLIP = Adapter("siglip", (_of_two(_TEXT, "text", _BASE), _SIGLIP_VISION))
CLIP_TEXT = Adapter("clip, text", (_in(_TEXT),))
CLIP_VISION = Adapter("clip, vision", (_in(_VISION),))
CLIP_CLASSIFIER = Adapter(
    "clip, vision", (dataclasses.replace(_in(_VISION), dims=DimKeys(section="vision_config", defaults=_BASE)),)
)
SIGLIP_IN_GEMMA = dataclasses.replace(_in("vision_tower.vision_model", _SIGLIP_VISION), under="vision_tower")
