"""ViT and DINOv2: BERT's names inside, pre-norm."""

from __future__ import annotations

from gatenorm_export.architectures.adapter import Adapter, Modules, TowerRow

_TENSORS = (
    "encoder.layer.{layer}.attention.attention.query.weight",
    "encoder.layer.{layer}.attention.attention.key.weight",
)
VIT = Adapter(
    "vit",
    (
        TowerRow(
            tensors=_TENSORS,
            modules=Modules("encoder.layer", "attention", "output.dense"),
            norm=("encoder.layer.{layer}.layernorm_before.weight",),
        ),
    ),
)
DINOV2 = Adapter(
    "dinov2",
    (
        TowerRow(
            tensors=_TENSORS,
            # The last matrix of the MLP has another name in the giant model, which gates it.
            modules=Modules("encoder.layer", "attention", None),
            norm=("encoder.layer.{layer}.norm1.weight",),
        ),
    ),
)
