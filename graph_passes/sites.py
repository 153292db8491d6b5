"""What the analysis finds: attention sublayers as frozen data, and reasons where there is none."""

from __future__ import annotations

import dataclasses
from typing import Literal

import onnx_ir as ir


class SurgeryRefused(ValueError):
    """A site cannot be removed without changing something else. The text names the layer, the node and the reason."""


@dataclasses.dataclass(frozen=True)
class AttentionCore:
    """The products around one softmax: probabilities = softmax(query key^T ...), output = probabilities value."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    output: ir.Value


@dataclasses.dataclass(frozen=True)
class CacheTensors:
    """The graph inputs and outputs through which one sublayer keeps its keys and values, key before value."""

    past: tuple[ir.Value, ...]
    present: tuple[ir.Value, ...]


@dataclasses.dataclass(frozen=True)
class ResidualMerge:
    """The node ``merge`` computes ``kept + branch``; without the sublayer its result is ``kept``.

    ``form`` is "residual" where ``kept`` is the stream that the sublayer read, and "parallel" where attention is first
    added to another branch of the same block, such as the MLP of GPT-J.
    """

    merge: ir.Node
    kept: ir.Value
    branch: ir.Value
    form: Literal["residual", "parallel"]


@dataclasses.dataclass(frozen=True)
class AttentionSite:
    """One removable attention sublayer.

    ``layer`` counts sublayers from 0 in the model as it was before any pruning; a pruned graph keeps those numbers in
    its metadata.
    """

    layer: int
    core: AttentionCore
    residual: ResidualMerge
    cache: CacheTensors


@dataclasses.dataclass(frozen=True)
class NoMatch:
    """Something that resembles attention but is left alone, and why."""

    node: ir.Node
    reason: str

    def __str__(self) -> str:
        return f"node {self.node.name or '<unnamed>'} ({self.node.op_type}): {self.reason}"


@dataclasses.dataclass(frozen=True)
class AttentionSites:
    """The result of the analysis: sites in the order in which the graph computes them, and what was not matched."""

    sites: tuple[AttentionSite, ...]
    unmatched: tuple[NoMatch, ...]
    n_layers: int
    """Attention sublayers before any pruning: layers already gone are counted."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer numbers still present."""
        return tuple(site.layer for site in self.sites)
