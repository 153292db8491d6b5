"""The Gate-Norm formula on arrays (arXiv 2512.20636)."""

from __future__ import annotations

import numpy as np


def gate_norm(query: np.ndarray, key: np.ndarray, *, head_dim: int) -> float:
    """The score m = ||Wq Wk^T||_F of one layer, all heads together, exact in float64.

    ``query`` is [n_heads * head_dim, d_model] and ``key`` [n_kv_heads * head_dim, d_model], as PyTorch keeps Linear
    weights. In grouped-query attention each key head is repeated to the query heads of its group, so that the gate
    matrix is sum_g (sum_{h in g} Wq_h)^T Wk_g.

    The d_model x d_model gate matrix is never formed: ||A^T B||_F^2 = <A A^T, B B^T>, two Gram matrices of the size of
    the key projection.

    Raises:
        ValueError: the shapes are no whole heads, or the query heads do not divide among the key heads.
    """
    (query_rows, d_model), (key_rows, key_width) = query.shape, key.shape
    if query_rows % head_dim or key_rows % head_dim or d_model != key_width or query_rows % key_rows:
        raise ValueError(f"query {query.shape} and key {key.shape} do not fit heads of {head_dim}")
    n_kv_heads, group = key_rows // head_dim, query_rows // key_rows
    grouped = query.astype(np.float64).reshape(n_kv_heads, group, head_dim, d_model).sum(axis=1)
    a, b = grouped.reshape(key_rows, d_model), key.astype(np.float64)
    # Rounding can leave the inner product of two positive semi-definite matrices a hair below zero.
    return float(np.sqrt(max(np.vdot(a @ a.T, b @ b.T), 0.0)))
