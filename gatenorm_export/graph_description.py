"""What the other stages need to know of an ONNX graph."""

from __future__ import annotations

import dataclasses

from gatenorm_export.records import GraphFacts


@dataclasses.dataclass(frozen=True)
class GraphDescription:
    """An ONNX graph as the other stages need to know it, without its tensors."""

    facts: GraphFacts
    n_layers: int
    kept: tuple[int, ...]
    unmatched: tuple[str, ...]
    n_cross: int = 0
    kept_cross: tuple[int, ...] = ()

    @property
    def dropped(self) -> tuple[int, ...]:
        """Layers that an earlier pruning took out, by the graph's own metadata."""
        return tuple(layer for layer in range(self.n_layers) if layer not in self.kept)

    @property
    def dropped_cross(self) -> tuple[int, ...]:
        """The same of cross-attention."""
        return tuple(layer for layer in range(self.n_cross) if layer not in self.kept_cross)
