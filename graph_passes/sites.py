"""What the analysis finds: attention sublayers as frozen data, and reasons where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import onnx_ir as ir

from graph_passes.operators import SUMS, node_name, operator_of

Kind = Literal["self", "cross"]
"""``cross``: keys and values come from another stream, such as the encoder's."""


class SurgeryRefused(ValueError):
    """A site cannot be removed without changing something else. The text names the layer, the node and the reason."""


class LengthLost(SurgeryRefused):
    """A length is read from a tensor that would go, and nothing that stays tells it."""


@dataclasses.dataclass(frozen=True)
class AttentionCore:
    """One attention: a softmax between two products, or a fused operator.

    ``node`` is the softmax or the operator. For a softmax, ``query`` and ``key`` are the operands of the scores product
    and ``value`` is that of the second product; a fused operator has its own operands, all three the same value where
    they come packed. ``past`` and ``present`` are a fused operator's own cache operands and results.
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    output: ir.Value
    past: tuple[ir.Value, ...] = ()
    present: tuple[ir.Value, ...] = ()

    @property
    def operands(self) -> tuple[ir.Value, ...]:
        """Query, key and value, each once."""
        return tuple(dict.fromkeys((self.query, self.key, self.value)))

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that must not survive a removal: softmax or operator, and the second product."""
        producer = self.output.producer()
        return (self.node,) if producer is None or producer is self.node else (self.node, producer)


@dataclasses.dataclass(frozen=True)
class CacheTensors:
    """The graph inputs and outputs through which one sublayer keeps its keys and values, key before value.

    For a sublayer in a branch of an If, ``present`` are the If's outputs and ``inner`` those of the branch.
    """

    past: tuple[ir.Value, ...]
    present: tuple[ir.Value, ...]
    inner: tuple[ir.Value, ...] = ()


@dataclasses.dataclass(frozen=True)
class ResidualMerge:
    """The node ``merge`` adds the sublayer's result (operand ``branch_index``) to what stays without it.

    ``form`` is "residual" where the other summand is the stream that the sublayer read, and "parallel" where attention
    is first added to another branch of the same block, such as the MLP of GPT-J. ``stream`` is the residual stream in
    both cases. ``bias_index`` is the operand of a Skip*LayerNormalization that holds the branch's bias.
    """

    merge: ir.Node
    branch_index: int
    form: Literal["residual", "parallel"]
    stream: ir.Value
    bias_index: int | None = None

    @property
    def branch(self) -> ir.Value:
        """The sublayer's result as the sum reads it now."""
        return _operand(self.merge, self.branch_index)

    @property
    def kept_indices(self) -> tuple[int, ...]:
        """Positions of the other summands."""
        positions = SUMS[operator_of(self.merge)]
        if positions is None:
            positions = tuple(range(len(self.merge.inputs)))
        return tuple(index for index in positions if index != self.branch_index)

    @property
    def kept(self) -> tuple[ir.Value, ...]:
        """The other summands as the sum reads them now."""
        return tuple(_operand(self.merge, index) for index in self.kept_indices)


@dataclasses.dataclass(frozen=True)
class AttentionSite:
    """One removable attention sublayer, which may have several cores (a difference of two, one for each head).

    ``layer`` counts sublayers of one kind from 0 in the model as it was before any pruning; a pruned graph keeps those
    numbers in its metadata. In a merged decoder the branches of an If have a site each, with the same number.
    """

    layer: int
    kind: Kind
    cores: tuple[AttentionCore, ...]
    residual: ResidualMerge
    cache: CacheTensors

    @property
    def graph(self) -> ir.Graph:
        """The graph, or subgraph, that holds the sublayer."""
        graph = self.residual.merge.graph
        assert isinstance(graph, ir.Graph)
        return graph

    def __str__(self) -> str:
        return f"layer {self.layer}" if self.kind == "self" else f"cross-attention layer {self.layer}"


@dataclasses.dataclass(frozen=True)
class NoMatch:
    """Something that resembles attention but is left alone, and why.

    ``layer`` is its number where it is attention beyond doubt (two products around a softmax, a known operator) whose
    residual was not found: it is counted, so that the layers after it have their right numbers, and its cache takes
    part in renumbering. ``residual`` is the sum that it ends in, where that is another sublayer's.
    """

    node: ir.Node
    reason: str
    kind: Kind | None = None
    layer: int | None = None
    cache: CacheTensors = CacheTensors((), ())
    residual: ResidualMerge | None = None

    def __str__(self) -> str:
        return f"{node_name(self.node)}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class AttentionSites:
    """The result of the analysis: sites in the order in which the graph computes them, and what was not matched."""

    sites: tuple[AttentionSite, ...]
    unmatched: tuple[NoMatch, ...]
    n_layers: int
    """Self-attention sublayers before any pruning: layers already gone are counted."""
    n_cross: int = 0
    """Cross-attention sublayers before any pruning."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the self-attention sublayers still present."""
        return self.numbers("self")

    def numbers(self, kind: Kind) -> tuple[int, ...]:
        """The numbers of the sublayers of a kind still present."""
        return tuple(sorted({site.layer for site in self.sites if site.kind == kind}))

    def total(self, kind: Kind) -> int:
        """How many sublayers of a kind there were before any pruning."""
        return self.n_layers if kind == "self" else self.n_cross

    def staying(self, kept: Iterable[AttentionSite]) -> tuple[AttentionSite | NoMatch, ...]:
        """The kept sublayers and those that are counted but were not matched: all layers of a graph after a removal."""
        return (*kept, *(no for no in self.unmatched if no.layer is not None))

    def chosen(self, layers: Iterable[int], cross: Iterable[int] = ()) -> tuple[AttentionSite, ...]:
        """The sites of the given layers, in graph order."""
        wanted = {"self": set(layers), "cross": set(cross)}
        return tuple(site for site in self.sites if site.layer in wanted[site.kind])


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
