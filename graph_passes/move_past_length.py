"""Keep lengths readable when the tensor that they are read from goes.

Exported decoders measure the length of the past on one layer's cache, as a rule layer 0's key, and now and then batch
or step on a tensor inside attention. Readers are pointed at a kept layer's cache of the same kind; when no layer keeps
one, the shape is put together from the lengths of the inputs, the past's being that of the attention mask less the
tokens'; and when the inputs do not tell it either, it is that of the stream, which the removed sums had as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from graph_passes.find_cache import key_value_path
from graph_passes.lengths import InputLengths, Length
from graph_passes.operators import node_name
from graph_passes.same_shape import same_shape
from graph_passes.sites import AttentionSite, LengthLost
from graph_passes.tape import Tape

_MASK, _TOKENS = "attention_mask", ("input_ids", "inputs_embeds", "decoder_input_ids")
"""Hugging Face's calling convention: the mask covers past and tokens. It is asked only where the names of the lengths
do not say so, as in graphs of torch's exporter, which gives each input lengths of its own."""


@dataclasses.dataclass(frozen=True)
class LengthMove:
    """``readers`` measure ``gone``; they get ``substitute`` instead, or else a shape made of ``lengths``."""

    gone: ir.Value
    readers: tuple[ir.Node, ...]
    substitute: ir.Value | None
    lengths: tuple[Length, ...]

    @property
    def source(self) -> str:
        """The inputs that the length is read from now, for a person."""
        if self.substitute is not None:
            return self.substitute.name or ""
        names = dict.fromkeys(value.name or "" for length in self.lengths for _, value, _ in length.terms)
        return ", ".join(names)


class MovePastLength(ir.passes.InPlacePass):
    """Carry out the moves."""

    def __init__(self, moves: Iterable[LengthMove]) -> None:
        super().__init__()
        self._moves = tuple(moves)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewire each reader."""
        for move in self._moves:
            for reader in move.readers:
                if move.substitute is not None:
                    _replace_operand(reader, move.gone, move.substitute)
                elif reader.op_type == "Shape":
                    _measure_inputs(reader, move.lengths)
                else:
                    _replace_operand(reader, move.gone, _stand_in(reader, move))
        return ir.passes.PassResult(model, modified=bool(self._moves))


def plan_move(
    gone: ir.Value,
    readers: Sequence[ir.Node],
    site: AttentionSite,
    removed: Sequence[AttentionSite],
    kept: Sequence[AttentionSite],
    inputs: Sequence[ir.Value],
    stays: Callable[[ir.Value], bool],
) -> LengthMove:
    """Work out before the first edit where the readers of ``gone`` can read instead; ``inputs`` are those that stay.

    Raises:
        LengthLost: nowhere; the text names the layer and the tensor.
    """
    substitute = _twin(gone, site, kept) or same_shape(gone, stays)
    if substitute is not None:
        return LengthMove(gone, tuple(readers), substitute, ())
    lengths = InputLengths(inputs)
    for other in removed:
        for past in other.cache.past:
            _add_aliases(lengths, past, _twin(past, other, kept), inputs)
    shape = lengths.resolve_shape(gone.shape)
    if shape is not None:
        return LengthMove(gone, tuple(readers), None, shape)
    substitute = same_shape(gone, stays, _streams(removed))
    if substitute is None:
        raise LengthLost(
            f"{site}, {node_name(readers[0])}: the graph reads a length from {gone.name} {gone.shape or ''}, which no "
            "kept layer's cache and no attention mask of length past + tokens tells; keep one such layer"
        )
    return LengthMove(gone, tuple(readers), substitute, ())


def _streams(removed: Iterable[AttentionSite]) -> dict[ir.Value, ir.Value]:
    """The sums that go, and the summand that every reader gets in place of each. Where shapes are told, both are equal:
    attention could be added to something that is spread over the batch."""
    streams: dict[ir.Value, ir.Value] = {}
    for site in removed:
        if len(site.residual.kept) != 1:
            continue
        (kept,) = site.residual.kept
        outputs = site.residual.merge.outputs
        for total in (outputs[0], *outputs[3:]):  # between them a fused norm has its mean and deviation
            if total.shape is None or kept.shape is None or str(total.shape) == str(kept.shape):
                streams[total] = kept
    return streams


def _twin(gone: ir.Value, site: AttentionSite, kept: Iterable[AttentionSite]) -> ir.Value | None:
    """A kept cache tensor of the same shape: by the names of its lengths, or by the same way from cache to keys.

    The second is asked for where an exporter names each input's lengths apart; a cache that is cut to a window takes
    another way than one that is not.
    """
    if gone not in site.cache.past:
        return None
    slot = site.cache.past.index(gone)
    alike = None
    for other in kept:
        if other.graph is not site.graph:
            continue
        for index, past in enumerate(other.cache.past):
            if past.shape is None or gone.shape is None or past.shape.rank() != gone.shape.rank():
                continue
            if _named(gone) and str(past.shape) == str(gone.shape):
                return past
            fixed = [(a, b) for a, b in zip(past.shape, gone.shape, strict=True) if isinstance(a, int)]
            if alike is None and index == slot and all(a == b for a, b in fixed) and _way(other) == _way(site):
                alike = past
    return alike


def _named(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(length, int) or length.value for length in value.shape)


def _way(site: AttentionSite) -> tuple[str, ...]:
    """The operators between a sublayer's cache and its keys and values."""
    producers = (value.producer() for core in site.cores for value in key_value_path(core, site.residual))
    return tuple(producer.op_type for producer in producers if producer is not None)


def _add_aliases(lengths: InputLengths, past: ir.Value, twin: ir.Value | None, inputs: Sequence[ir.Value]) -> None:
    """Say how the named lengths of a cache that goes are told by what stays.

    Of the lengths that are open, the first is the batch and the second the past; a third is a size that no input tells.
    """
    open_axes = [axis for axis, length in enumerate(past.shape or ()) if not isinstance(length, int)]
    mask = next((value for value in inputs if value.name == _MASK and _rank(value) == 2), None)
    tokens = next((value for value in inputs if value.name in _TOKENS and _rank(value) in {2, 3}), None)
    for place, axis in enumerate(open_axes):
        assert past.shape is not None
        length = past.shape[axis]
        if lengths.resolve(length) is not None:
            continue
        if twin is not None:
            lengths.add(str(length), Length(((1, twin, axis),)))
        elif place == 0 and tokens is not None:
            lengths.add(str(length), Length(((1, tokens, 0),)))
        elif place == 1 and tokens is not None and mask is not None:
            lengths.add(str(length), Length(((1, mask, 1), (-1, tokens, 1))))


def _rank(value: ir.Value) -> int | None:
    return value.shape.rank() if value.shape is not None else None


def _replace_operand(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)


class _LengthTape(Tape):
    """New nodes that compute lengths."""

    def number(self, number: int) -> ir.Value:
        """A constant vector of one number."""
        return self.make("Constant", value=ir.tensor([number], dtype=ir.DataType.INT64))

    def length(self, length: Length) -> ir.Value:
        """A length as a vector of one number."""
        total: ir.Value | None = None
        for sign, value, axis in length.terms:
            # Gather serves every opset; Shape has start and end from 15 on.
            one = self.make("Gather", [self.make("Shape", [value]), self.number(axis)], axis=0)
            if total is None:
                total = one if sign > 0 else self.make("Neg", [one])
            else:
                total = self.make("Add" if sign > 0 else "Sub", [total, one])
        if total is None:
            return self.number(length.constant)
        return self.make("Add", [total, self.number(length.constant)]) if length.constant else total

    def vector(self, lengths: Sequence[Length]) -> ir.Value:
        """A whole shape."""
        return self.make("Concat", [self.length(length) for length in lengths], axis=0)


def _measure_inputs(reader: ir.Node, lengths: Sequence[Length]) -> None:
    """Replace ``Shape(gone)`` by the same vector computed from the inputs."""
    start = reader.attributes["start"].as_int() if "start" in reader.attributes else 0
    end = reader.attributes["end"].as_int() if "end" in reader.attributes else len(lengths)
    output = reader.outputs[0]
    vector = _LengthTape(reader, f"{output.name}/from_inputs").vector(lengths[slice(start, end)])
    output.replace_all_uses_with(vector)
    assert isinstance(reader.graph, ir.Graph)
    reader.graph.remove(reader, safe=True)


def _stand_in(reader: ir.Node, move: LengthMove) -> ir.Value:
    """Zeros of the shape that is measured further on, for a reader that relays before it measures."""
    tape = _LengthTape(reader, f"{move.gone.name}/stand_in")
    dtype = move.gone.dtype or ir.DataType.FLOAT
    zero = ir.tensor([0], dtype=dtype)
    return tape.make("ConstantOfShape", [tape.vector(move.lengths)], value=zero)
