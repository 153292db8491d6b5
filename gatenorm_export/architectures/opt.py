"""OPT: separate projections; one size (350M) norms behind attention instead of before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.adapter import Adapter, Modules, TowerRow

_LAYERS = "decoder.layers.{layer}"


def _norm(row: TowerRow, config: Mapping[str, Any], where: str) -> TowerRow:
    return dataclasses.replace(row, norm=()) if config.get("do_layer_norm_before") is False else row


OPT = Adapter(
    "opt",
    (
        TowerRow(
            tensors=(f"{_LAYERS}.self_attn.q_proj.weight", f"{_LAYERS}.self_attn.k_proj.weight"),
            modules=Modules("decoder.layers", "self_attn", "fc2"),
            norm=(f"{_LAYERS}.self_attn_layer_norm.weight",),
        ),
    ),
    variant=_norm,
)
