"""DeepSeek V2 and V3: multi-head latent attention, whose query and key are products of low-rank factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gatenorm_export.architectures.adapter import Adapter, Modules, TowerRow
from gatenorm_export.architectures.layouts import Shapes
from gatenorm_export.architectures.llama import INPUT_NORM
from gatenorm_export.architectures.resolving import positive
from gatenorm_export.architectures.tower import Tower


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Effective query and key of multi-head latent attention.

    The query of a head is [nope | rope] rows of ``q_b @ q_a``, or of a plain matrix (``query_rank`` None). The key of a
    head has its own nope rows, ``kv_b @ kv_a``, and rope rows that all heads share: the last rows of ``kv_a``. Heads of
    ``kv_b`` are [nope | value] rows; with ``absorbed`` there is instead a ``k_b`` of [heads, key_rank, nope], as newer
    GGUF files keep it. The norms between the factors are left out, as all norms are.
    """

    query_rank: int | None
    key_rank: int
    nope: int
    rope: int
    value: int
    absorbed: bool = False
    description: str = "low rank (MLA), effective weights without the norms between the factors"

    def shapes(self, tower: Tower) -> Shapes:
        """[q] or [q_a, q_b], then kv_a, then kv_b or k_b."""
        rows = tower.n_heads * (self.nope + self.rope)
        query: Shapes = ((rows, tower.d_model),)
        if self.query_rank is not None:
            query = (self.query_rank, tower.d_model), (rows, self.query_rank)
        last = (
            (tower.n_heads, self.key_rank, self.nope)
            if self.absorbed
            else (tower.n_heads * (self.nope + self.value), self.key_rank)
        )
        return *query, (self.key_rank + self.rope, tower.d_model), last

    def split(self, arrays: Sequence[np.ndarray], tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """The products, in float32, or in float64 where that is stored."""
        dtype = np.float64 if arrays[0].dtype == np.float64 else np.float32
        *query_factors, kv_a, last = (array.astype(dtype, copy=False) for array in arrays)
        query = query_factors[0] if self.query_rank is None else np.matmul(query_factors[1], query_factors[0])
        own = self.own_rows(last)
        key = np.empty((tower.n_heads, self.nope + self.rope, tower.d_model), dtype)
        np.matmul(own, kv_a[: self.key_rank], out=key[:, : self.nope])
        key[:, self.nope :] = kv_a[self.key_rank :]
        return query, key.reshape(-1, tower.d_model)

    def own_rows(self, last: np.ndarray) -> np.ndarray:
        """The factor of each head's own key rows, [heads, nope, key_rank], of ``kv_b`` or ``k_b``."""
        if self.absorbed:
            return last.transpose(0, 2, 1)
        return last.reshape(-1, self.nope + self.value, self.key_rank)[:, : self.nope]

    def joined(self, tower: Tower) -> Tower:
        """See :class:`gatenorm_export.architectures.tower.Joinable`."""
        layout = JoinedLowRank(self, tower.n_heads, tower.head_dim)
        return dataclasses.replace(tower, n_heads=1, n_kv_heads=1, head_dim=self.key_rank + self.rope, layout=layout)


@dataclasses.dataclass(frozen=True)
class JoinedLowRank:
    """All heads of multi-head latent attention as one: its key is ``kv_a``, which all heads read their keys from.

    With A and R the latent and the rope rows of ``kv_a``, sum_h Wq_h Wk_h^T = sum_h (nope_h^T B_h A + rope_h^T R) =
    (sum_h B_h^T nope_h)^T A + (sum_h rope_h)^T R, where nope_h and rope_h are the rows of the query and B_h those of
    ``kv_b``. For DeepSeek V3 that is 576 rows in the place of 24,576.
    """

    inner: LowRank
    n_heads: int
    head_dim: int

    @property
    def description(self) -> str:
        """A few words for the score file."""
        return self.inner.description

    def shapes(self, tower: Tower) -> Shapes:
        """Those of the tower that was joined."""
        return self.inner.shapes(dataclasses.replace(tower, n_heads=self.n_heads, head_dim=self.head_dim))

    def split(self, arrays: Sequence[np.ndarray], tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """Query and key of one head of key_rank + rope rows, in float32, or in float64 where that is stored."""
        dtype = np.float64 if arrays[0].dtype == np.float64 else np.float32
        *query_factors, kv_a, last = (array.astype(dtype, copy=False) for array in arrays)
        rows = query_factors[-1].reshape(self.n_heads, self.head_dim, -1)
        nope, rope = rows[:, : self.inner.nope], rows[:, self.inner.nope :]
        own = self.inner.own_rows(last).reshape(-1, self.inner.key_rank)
        query = np.concatenate([own.T @ nope.reshape(len(own), -1), rope.sum(axis=0)])
        return (query if self.inner.query_rank is None else np.matmul(query, query_factors[0])), kv_a


_LAYERS = "layers.{layer}.self_attn"
_KEY = (f"{_LAYERS}.kv_a_proj_with_mqa.weight", f"{_LAYERS}.kv_b_proj.weight")


def _ranks(row: TowerRow, config: Mapping[str, Any], where: str) -> TowerRow:
    """The layout of this config's ranks; the small models have no low rank in the query."""
    query_rank = None if config.get("q_lora_rank") is None else positive(config, "q_lora_rank", where)
    nope, rope = positive(config, "qk_nope_head_dim", where), positive(config, "qk_rope_head_dim", where)
    layout = LowRank(
        query_rank, positive(config, "kv_lora_rank", where), nope, rope, positive(config, "v_head_dim", where)
    )
    query = ("q_proj",) if query_rank is None else ("q_a_proj", "q_b_proj")
    dims = dataclasses.replace(row.dims, head_size=nope + rope)
    return dataclasses.replace(
        row, layout=layout, dims=dims, tensors=(*(f"{_LAYERS}.{name}.weight" for name in query), *_KEY)
    )


DEEPSEEK = Adapter(
    "deepseek",
    (TowerRow(tensors=_KEY, modules=Modules("layers", "self_attn", None), norm=INPUT_NORM),),
    variant=_ranks,
)
