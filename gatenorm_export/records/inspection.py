"""What an ONNX graph holds, for a person who wants to prune it."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record


class AttentionSublayer(Part):
    """One attention sublayer as it was found. ``layer`` is the number that ``prune --layers`` takes.

    ``branch`` names the branch of an If that holds it, in merged decoders. ``weight_bytes`` would go with it, and are
    None, like ``moves_past_length_to``, where it cannot be removed alone; ``refusal`` then says why.
    """

    layer: int
    kind: Literal["self", "cross"]
    branch: str | None
    found_by: str
    node: str
    operator: str
    n_heads: int | None
    n_kv_heads: int | None
    head_dim: int | None
    past: tuple[str, ...]
    present: tuple[str, ...]
    residual: str
    block: str
    weight_bytes: int | None
    owns_past_length: bool
    moves_past_length_to: str | None
    refusal: str | None


class UnmatchedNode(Part):
    """Something that resembles attention and is left alone, and why. ``layer`` is set where it counts as a layer."""

    node: str
    operator: str
    layer: int | None
    reason: str


class GraphInspection(Record):
    """Every attention sublayer of a graph."""

    kind: Literal["inspection"] = "inspection"
    graph: str
    opsets: dict[str, int]
    n_nodes: int
    n_layers: int
    n_cross_layers: int
    sublayers: tuple[AttentionSublayer, ...]
    unmatched: tuple[UnmatchedNode, ...]
