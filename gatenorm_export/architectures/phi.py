"""Phi 1 and 2 (separate projections, parallel blocks), and Phi 3 and 4 (fused, stacked)."""

from __future__ import annotations

from gatenorm_export.architectures.adapter import Adapter, Modules, TowerRow
from gatenorm_export.architectures.layouts import Stacked
from gatenorm_export.architectures.llama import GROUPED, INPUT_NORM, SELF_ATTN

PHI = Adapter(
    "phi",
    (TowerRow(tensors=SELF_ATTN, modules=Modules("layers", "self_attn", "mlp.fc2"), dims=GROUPED, norm=INPUT_NORM),),
)
PHI3 = Adapter(
    "phi3",
    (
        TowerRow(
            tensors=("layers.{layer}.self_attn.qkv_proj.weight",),
            modules=Modules("layers", "self_attn", "mlp.down_proj"),
            dims=GROUPED,
            layout=Stacked(),
            norm=INPUT_NORM,
        ),
    ),
)
