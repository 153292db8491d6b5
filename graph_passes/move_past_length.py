"""Keep the past length readable when the cache it is read from goes.

Exported decoders measure the length of the past on one layer's cache, as a rule layer 0's key. Readers of a removed
cache tensor are pointed at a kept layer's; when no layer keeps one, the shape is put together from the lengths of the
attention mask and of the tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from graph_passes.sites import AttentionSite, SurgeryRefused


class MovePastLength(ir.passes.InPlacePass):
    """Give every ``Shape`` in ``readers``, all of which measure a removed cache tensor, another source."""

    def __init__(self, readers: Iterable[ir.Node], kept: Sequence[AttentionSite]) -> None:
        super().__init__()
        self._readers = tuple(readers)
        self._kept = tuple(kept)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewire each reader.

        Raises:
            SurgeryRefused: neither a kept cache nor the attention mask can stand in.
        """
        for reader in self._readers:
            gone = reader.inputs[0]
            assert gone is not None
            substitute = find_substitute(gone, self._kept)
            if substitute is not None:
                reader.replace_input_with(0, substitute)
            else:
                _shape_from_mask(model.graph, reader, gone)
        return ir.passes.PassResult(model, modified=bool(self._readers))


def find_substitute(gone: ir.Value, kept: Iterable[AttentionSite]) -> ir.Value | None:
    """A kept cache tensor of the same shape, dimension by dimension; None when no layer keeps one like it."""
    for site in kept:
        for past in site.cache.past:
            if past.shape is not None and gone.shape is not None and str(past.shape) == str(gone.shape):
                return past
    return None


def mask_and_tokens(graph: ir.Graph, gone: ir.Value) -> tuple[ir.Value, ir.Value, int] | None:
    """The attention mask, the token input and the axis of ``gone`` that holds the past length, or None.

    They are known by their symbolic lengths: tokens are [b, s], the mask is [b, p + s], and the axis of length p is
    the past. Every other axis of ``gone`` must be b or fixed, or its shape cannot be told from the two.
    """
    if gone.shape is None:
        return None
    flat = [value for value in graph.inputs if value.shape is not None and value.shape.rank() == 2]
    for tokens, mask in itertools.permutations(flat, 2):
        assert tokens.shape is not None
        assert mask.shape is not None
        batch, step = map(str, tokens.shape)
        for axis, past in enumerate(gone.shape):
            others = [length for index, length in enumerate(gone.shape) if index != axis]
            if (
                not isinstance(past, int)
                and str(mask.shape[1]) in {f"{past} + {step}", f"{step} + {past}", f"{past}+{step}", f"{step}+{past}"}
                and all(isinstance(length, int) or str(length) == batch for length in others)
            ):
                return mask, tokens, axis
    return None


def check_movable(graph: ir.Graph, site: AttentionSite, gone: ir.Value, kept: Sequence[AttentionSite]) -> None:
    """Ask before the first edit whether readers of ``gone`` can be moved.

    Raises:
        SurgeryRefused: they cannot; the text names the layer and the cache tensor.
    """
    if find_substitute(gone, kept) is None and mask_and_tokens(graph, gone) is None:
        raise SurgeryRefused(
            f"layer {site.layer}, input {gone.name}: the graph reads the past length from it, no kept layer has a "
            f"cache of shape {gone.shape}, and no attention mask of length past + tokens is among the inputs"
        )


def _shape_from_mask(graph: ir.Graph, reader: ir.Node, gone: ir.Value) -> None:
    """Replace ``Shape(gone)`` by the same vector computed from the mask's and the tokens' lengths."""
    found, shape = mask_and_tokens(graph, gone), gone.shape
    if found is None or shape is None:
        raise SurgeryRefused(f"input {gone.name}: no attention mask tells the past length that is read from it")
    mask, tokens, past_axis = found
    name = reader.outputs[0].name
    nodes: list[ir.Node] = []

    def make(op_type: str, inputs: Sequence[ir.Value] = (), **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes, name=f"{name}/from_mask/{op_type}_{len(nodes)}")
        node.outputs[0].name = f"{node.name}_output"
        nodes.append(node)
        return node.outputs[0]

    parts = []
    for axis, length in enumerate(shape):
        if axis == past_axis:
            total, step = make("Shape", [mask], start=1, end=2), make("Shape", [tokens], start=1, end=2)
            parts.append(make("Sub", [total, step]))
        elif isinstance(length, int):
            parts.append(make("Constant", value_ints=[length]))
        else:
            parts.append(make("Shape", [tokens], start=0, end=1))
    start = reader.attributes["start"].as_int() if "start" in reader.attributes else 0
    end = reader.attributes["end"].as_int() if "end" in reader.attributes else len(parts)
    vector = make("Concat", parts[slice(start, end)], axis=0)
    graph.insert_before(reader, nodes)
    reader.outputs[0].replace_all_uses_with(vector)
    graph.remove(reader, safe=True)
