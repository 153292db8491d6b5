"""Which tensors scoring may need, by name alone: before a config is read, or for a family that is not known."""

from __future__ import annotations

import functools
import re

from gatenorm_export.architectures.table import ADAPTERS

# What families outside the table call such weights.
_LIKELY = r"(q|k|query|key|qkv|wqkv|query_key_value|q_proj|k_proj|qkv_proj|c_attn|to_q|to_k|wq|wk)(\.weight)?"


def holds_query_or_key(name: str) -> bool:
    """Whether a tensor of that name holds query or key weights in any family of the table, or is called as if it did.

    Packed and scaled weights count (``q_proj.qweight``, ``q_proj.weight_scale_inv``).
    """
    return (
        _tails().search(re.sub(r"\.(qweight|qzeros|scales|g_idx|weight_scale\w*|input_scale)$", ".weight", name))
        is not None
    )


@functools.cache
def _tails() -> re.Pattern[str]:
    tails = {tail for adapter in ADAPTERS.values() for row in adapter.towers for tail in row.tensors}
    known = (re.escape(tail).replace(r"\{layer\}", r"\d+") for tail in sorted(tails))
    return re.compile(rf"(^|\.)({'|'.join(known)}|{_LIKELY})$")
