"""The layouts in which families keep query and key weights, each with the splitter that undoes it.

Rows are outputs and columns inputs, as PyTorch keeps Linear weights. What a layout does not need of a tensor (the rows
of the value) is never touched: a split is a view, or a copy of nothing but query and key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gatenorm_export.architectures.tower import Tower

Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Separate:
    """A query and a key matrix."""

    description: str = "separate"

    def shapes(self, tower: Tower) -> Shapes:
        """Query and key."""
        return (tower.n_heads * tower.head_dim, tower.d_model), (tower.n_kv_heads * tower.head_dim, tower.d_model)

    def split(self, arrays: Sequence[np.ndarray], tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """As they are."""
        query, key = arrays
        return query, key


SEPARATE = Separate()


@dataclasses.dataclass(frozen=True)
class Stacked:
    """One matrix: all query heads, all key heads, all value heads. ``transposed`` is GPT-2's Conv1D: [in, out]."""

    transposed: bool = False

    @property
    def description(self) -> str:
        """A few words for the score file."""
        return "fused, stacked q k v, transposed" if self.transposed else "fused, stacked q k v"

    def shapes(self, tower: Tower) -> Shapes:
        """The one matrix."""
        rows = (tower.n_heads + 2 * tower.n_kv_heads) * tower.head_dim
        return ((tower.d_model, rows),) if self.transposed else ((rows, tower.d_model),)

    def split(self, arrays: Sequence[np.ndarray], tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """Two views."""
        fused = arrays[0].T if self.transposed else arrays[0]
        queries = tower.n_heads * tower.head_dim
        return fused[:queries], fused[queries : queries + tower.n_kv_heads * tower.head_dim]


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """One matrix: for each key head its query heads, the key head, the value head.

    With as many key heads as query heads that is q, k, v of each head in turn (GPT-NeoX, BLOOM).
    """

    description: str = "fused, interleaved by head"

    def shapes(self, tower: Tower) -> Shapes:
        """The one matrix."""
        return (((tower.n_heads + 2 * tower.n_kv_heads) * tower.head_dim, tower.d_model),)

    def split(self, arrays: Sequence[np.ndarray], tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """A copy of the query and of the key: heads of neither lie together."""
        groups = arrays[0].reshape(tower.n_kv_heads, -1, tower.head_dim, tower.d_model)
        return groups[:, :-2].reshape(-1, tower.d_model), groups[:, -2].reshape(-1, tower.d_model)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """One matrix in ``blocks`` equal parts, each with its share of query, value and key heads, in that order.

    CodeGen's: the parts are the model-parallel cores that it was trained on. Which heads a part holds does not matter
    to a score, as long as query and key agree.
    """

    blocks: int
    description: str = "fused, in blocks of q v k"

    def shapes(self, tower: Tower) -> Shapes:
        """The one matrix."""
        return ((3 * tower.n_heads * tower.head_dim, tower.d_model),)

    def split(self, arrays: Sequence[np.ndarray], tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """A copy of the query and of the key."""
        parts = arrays[0].reshape(self.blocks, 3, -1, tower.d_model)
        return parts[:, 0].reshape(-1, tower.d_model), parts[:, 2].reshape(-1, tower.d_model)
