"""What scoring needs of one stack of attention sublayers: its dimensions, its tensors, and how they are laid out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LayerTensors:
    """One attention sublayer in a checkpoint.

    ``names`` are stored names, in the order in which the layout takes them. ``norm`` is the stored name of the weight
    of the norm before attention: None where the block norms behind it (BERT), or with no weight (OLMo 1).
    ``n_heads`` and ``n_kv_heads`` are only set where a layer has other counts than its tower.
    """

    layer: int
    names: tuple[str, ...]
    norm: str | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None


class Layout(Protocol):
    """How a family keeps its query and key weights."""

    @property
    def description(self) -> str:
        """A few words for the score file."""

    def shapes(self, tower: Tower) -> tuple[tuple[int, ...], ...]:
        """Shapes of the stored tensors of a layer, in the order of :attr:`LayerTensors.names`."""

    def split(self, arrays: Sequence[np.ndarray], tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """Stored tensors -> query [n_heads * head_dim, d_model] and key [n_kv_heads * head_dim, d_model].

        Heads of the query come in order of the key heads they share. Both are views where that is possible.
        """


@runtime_checkable
class Joinable(Protocol):
    """A layout whose gate matrix of all heads together is a product of much smaller matrices than query and key."""

    def joined(self, tower: Tower) -> Tower:
        """The same tower as one head, with the same gate matrix; it takes the same stored tensors."""


@dataclasses.dataclass(frozen=True)
class Tower:
    """One stack of attention sublayers: ``name`` is "" where a model has only one, or such as "encoder", "cross".

    ``n_layers`` counts all blocks, ``layers`` only holds those that have attention. ``norm`` is the name, with a
    ``{layer}`` field, of the norm weight that the family has before attention in every layer from ``normed_from`` on;
    None where it has none, or is not known. ``norm_offset`` is 1.0 where the norm multiplies by 1 + weight, as Gemma's
    does. ``guessed`` is a sentence that says that tensors were found by names and shapes; None for a family in the
    table.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    layout: Layout
    layers: tuple[LayerTensors, ...]
    norm: str | None = None
    normed_from: int = 0
    norm_offset: float = 0.0
    guessed: str | None = None

    def shapes(self, layer: LayerTensors) -> tuple[tuple[int, ...], ...]:
        """Shapes that the stored tensors of one of its layers must have, in the order of ``layer.names``."""
        return self.layout.shapes(self._of(layer))

    def split(self, layer: LayerTensors, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Query [heads * head_dim, d_model] and key [key heads * head_dim, d_model] of one of its layers."""
        return self.layout.split(arrays, self._of(layer))

    def joined(self) -> Tower:
        """A tower with the same gate matrices of all heads together, whose query and key are as small as they can be.

        For the all-heads score only: heads cannot be told apart in it. The tower itself, where its layout has no
        smaller form than query and key.
        """
        return self.layout.joined(self) if isinstance(self.layout, Joinable) else self

    def _of(self, layer: LayerTensors) -> Tower:
        if layer.n_heads is None and layer.n_kv_heads is None:
            return self
        return dataclasses.replace(
            self, n_heads=layer.n_heads or self.n_heads, n_kv_heads=layer.n_kv_heads or self.n_kv_heads
        )
