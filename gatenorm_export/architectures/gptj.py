"""GPT-J (separate projections) and CodeGen, which fused them in four blocks of q, v, k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.adapter import Adapter, Modules, TowerRow
from gatenorm_export.architectures.gpt2 import GPT2_DIMS, LN_1
from gatenorm_export.architectures.layouts import Blocks
from gatenorm_export.architectures.resolving import dimensions
from gatenorm_export.errors import InputError

_CORES = 4
"""CodeGen was trained on as many model-parallel cores, and transformers fixes the number in its code."""

_MODULES = Modules("h", "attn", "mlp.fc_out")

GPTJ = Adapter(
    "gptj",
    (
        TowerRow(
            tensors=("h.{layer}.attn.q_proj.weight", "h.{layer}.attn.k_proj.weight"),
            modules=_MODULES,
            dims=GPT2_DIMS,
            norm=LN_1,
        ),
    ),
)


def _whole_heads(row: TowerRow, config: Mapping[str, Any], where: str) -> TowerRow:
    """Refuse what has no whole heads in each block."""
    n_heads = dimensions(row.dims, config, where)[2]
    if n_heads % _CORES:
        raise InputError(f"{where}: {row.dims.n_heads} is {n_heads}, and CodeGen's must be a multiple of {_CORES}")
    return row


CODEGEN = Adapter(
    "codegen",
    (
        TowerRow(
            tensors=("h.{layer}.attn.qkv_proj.weight",),
            modules=_MODULES,
            dims=GPT2_DIMS,
            layout=Blocks(_CORES),
            norm=LN_1,
        ),
    ),
    variant=_whole_heads,
)
