"""A decoder graph as a chain of layers on ONNX Runtime: the residual stream can be stopped, kept and changed anywhere.

The graph is cut at the residual stream in front of every attention sublayer. Each layer becomes two sessions, attention
and what follows it, so that a layer can be run with its attention, without it, or with something else in its place, and
so that nothing in front of a change is computed twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gatenorm_export.calibrating.pieces import Piece
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.graphs import load_graph
from gatenorm_export.shape_inference import check_shapes
from graph_passes import (
    Block,
    CutRefused,
    Dataflow,
    DownProjection,
    InlineAttentionFunctions,
    UnfuseSkipNorms,
    cut,
    find_attention,
    find_blocks,
    heads_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_SHAPE_KEEPING = frozenset({"Cast", "CastLike", "Identity", "Dropout", "Mul", "Div", "LayerNormalization"})

Stream = np.ndarray
"""The residual stream, [windows, tokens, d_model], in float32 whatever the graph's own type."""


@dataclasses.dataclass(frozen=True)
class Rest:
    """What a layer computes behind its attention.

    ``following`` is the stream in front of the next layer; ``after`` the sum that attention ends in; ``hidden``
    [windows, tokens, d_hidden] the operand of the MLP's last matrix and ``total`` the stream behind it, both None
    where the MLP ends in something else than one matrix.
    """

    following: Stream
    after: Stream
    hidden: np.ndarray | None
    total: Stream | None


class StreamModel:
    """A decoder graph, cut into its layers.

    Raises:
        InputError: not an ONNX file, or one that ONNX Runtime cannot run.
        RefusedError: the graph is no decoder over tokens that can be cut: attention in branches of an If,
            cross-attention, a layer that reads what lies in front of its stream.
    """

    def __init__(self, graph: Path) -> None:
        with needs("ort", "measuring layers"):
            import onnxruntime  # noqa: F401
        from onnx_ir.passes.common import ShapeInferencePass

        self.graph = graph
        self._model = load_graph(graph)
        check_shapes(graph)
        InlineAttentionFunctions()(self._model)
        UnfuseSkipNorms()(self._model)
        ShapeInferencePass(check_type=False, strict_mode=False)(self._model)
        try:
            flow = Dataflow(self._model)
            found = find_attention(self._model, flow)
        except ValueError as error:
            raise InputError(f"{graph}: {error}") from error
        if not found.sites:
            raise RefusedError(f"{graph}: no attention was found to measure")
        for site in found.sites:
            if site.kind != "self" or site.graph is not self._model.graph:
                where = "cross-attention" if site.kind != "self" else "attention in a branch of an If"
                raise RefusedError(f"{graph}: has {where}; only plain decoders can be measured layer by layer")
        self._flow = flow
        self.n_layers = found.n_layers
        self.blocks: dict[int, Block] = {block.layer: block for block in find_blocks(found, flow)}
        self.layers: tuple[int, ...] = tuple(self.blocks)
        self._head_dims = {
            past: heads_of(block.site).head_dim for block in self.blocks.values() for past in block.site.cache.past
        }
        self._sessions: dict[tuple[str, int], Piece] = {}
        self._change: tuple[np.ndarray, np.ndarray] | None = None
        self._bounds = self._stream_bounds()
        self._logits = self._model.graph.outputs[0]
        self._check_inputs()

    def feeds(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of a prefill of whole windows, tokens [windows, length]: no padding, an empty cache."""
        windows, length = tokens.shape
        feed: dict[str, np.ndarray] = {
            TOKENS: tokens.astype(np.int64),
            MASK: np.ones(tokens.shape, np.int64),
            POSITIONS: np.tile(np.arange(length, dtype=np.int64), (windows, 1)),
        }
        for value in self._model.graph.inputs:
            if value.name in feed or value.is_initializer():
                continue
            assert value.name is not None
            assert value.shape is not None
            feed[value.name] = np.zeros(_empty(value.shape, windows, self._head_dims.get(value)), _numpy_type(value))
        return feed

    def embed(self, tokens: np.ndarray) -> Stream:
        """The stream in front of the first layer, for tokens [windows, length]."""
        (stream,) = self._run("embed", 0, [], [self._bounds[0]], [], tokens)
        return stream

    def attend(self, layer: int, stream: Stream, tokens: np.ndarray) -> tuple[Stream, np.ndarray]:
        """What a layer's attention adds, and what it read: the stream or its norm."""
        block = self.blocks[layer]
        branch, read = self._run(
            "attend", layer, [block.stream], [block.site.residual.branch, block.read], [stream], tokens
        )
        return branch, read

    def read(self, layer: int, stream: Stream, tokens: np.ndarray) -> np.ndarray:
        """What a layer's attention would read, [windows, tokens, d_model]."""
        block = self.blocks[layer]
        if block.read is block.stream:
            return stream
        (read,) = self._run("read", layer, [block.stream], [block.read], [stream], tokens)
        return read

    def rest(self, layer: int, stream: Stream, branch: Stream, tokens: np.ndarray) -> Rest:
        """What follows attention, when attention adds ``branch``."""
        block = self.blocks[layer]
        following = self._bounds[self.layers.index(layer) + 1]
        down = block.down if isinstance(block.down, DownProjection) else None
        wanted = [following, block.after or following]
        wanted += [down.hidden, down.total] if down is not None else []
        got = self._run("rest", layer, [block.stream, block.site.residual.branch], wanted, [stream, branch], tokens)
        return Rest(got[0], got[1], *(got[2:] if down is not None else (None, None)))

    def following(self, layer: int, stream: Stream, tokens: np.ndarray) -> Stream:
        """The stream behind a layer as it is, with its attention."""
        branch, _ = self.attend(layer, stream, tokens)
        return self.rest(layer, stream, branch, tokens).following

    def logits(self, stream: Stream, tokens: np.ndarray) -> np.ndarray:
        """Logits [windows, tokens, vocabulary] from the stream behind the last layer."""
        (logits,) = self._run("head", 0, [self._bounds[-1]], [self._logits], [stream], tokens)
        return logits

    def down_weight(self, layer: int) -> np.ndarray:
        """The last matrix of a layer's MLP, [d_hidden, d_model] in float32.

        Raises:
            RefusedError: the MLP ends in something else; the text says in what.
        """
        down = self.down(layer)
        tensor = down.weight.const_value
        assert tensor is not None
        weight = tensor.numpy().astype(np.float32)
        return weight.T if down.transposed else weight

    def down_change(self, layer: int, down: np.ndarray) -> np.ndarray:
        """``down`` less the last matrix of a layer's MLP; kept for the next call, as a layer goes batch by batch."""
        if self._change is None or self._change[0] is not down:
            self._change = down, down - self.down_weight(layer)
        return self._change[1]

    def down(self, layer: int) -> DownProjection:
        """The last matrix of a layer's MLP, as the graph has it.

        Raises:
            RefusedError: the MLP ends in something else; the text says in what.
        """
        down = self.blocks[layer].down
        if isinstance(down, str):
            raise RefusedError(f"{self.graph}: layer {layer} has no matrix that `mlp` could fit anew: {down}")
        return down

    def _stream_bounds(self) -> list[ir.Value]:
        last = self.blocks[self.layers[-1]]
        end = last.after if isinstance(last.down, str) else last.down.total
        if end is None:
            raise RefusedError(f"{self.graph}: the stream behind layer {last.layer} was not found: {last.down}")
        return [*(block.stream for block in self.blocks.values()), end]

    def _check_inputs(self) -> None:
        caches = {past for block in self.blocks.values() for past in block.site.cache.past}
        inputs = [value for value in self._model.graph.inputs if not value.is_initializer()]
        strange = [v.name for v in inputs if v.name not in {TOKENS, MASK, POSITIONS} and v not in caches]
        if strange or TOKENS not in {value.name for value in inputs}:
            what = f"has the input {strange[0]}" if strange else f"has no input {TOKENS}"
            raise RefusedError(f"{self.graph}: {what}; only decoders over tokens, mask and positions can be measured")

    def _run(
        self,
        kind: str,
        layer: int,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        arrays: Sequence[np.ndarray],
        tokens: np.ndarray,
    ) -> list[np.ndarray]:
        piece = self._sessions.get((kind, layer))
        if piece is None:
            piece = self._sessions[kind, layer] = self._piece(inputs, outputs, self._in_front(kind, layer))
        return piece(arrays, self.feeds(tokens))

    def _in_front(self, kind: str, layer: int) -> list[ir.Value]:
        """The stream wherever earlier layers have it: what a piece must be given and not compute."""
        if kind == "embed":
            return []
        place = len(self.layers) if kind == "head" else self.layers.index(layer)
        streams: list[ir.Value | None] = []
        for block in (self.blocks[number] for number in self.layers[:place]):
            total = block.down.total if isinstance(block.down, DownProjection) else None
            streams += [block.stream, block.after, total]
        # Graphs measure the embedding itself, in front of a cast or a factor; computed again, it would be held by every
        # piece.
        for bound in self._bounds[: place + 1]:
            streams += self._alike(bound)
        return [value for value in streams if value is not None]

    def _alike(self, stream: ir.Value) -> list[ir.Value]:
        """Values in front of a stream that have its shape: a cast, a factor or a norm leads from each to the next."""
        found: list[ir.Value] = []
        while (node := stream.producer()) is not None and node.op_type in _SHAPE_KEEPING:
            varying = self._flow.varying(node.inputs)
            if len(varying) != 1:
                break
            stream = varying[0]
            found.append(stream)
        return found

    def _piece(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], in_front: Sequence[ir.Value]) -> Piece:
        distinct = list(dict.fromkeys(outputs))
        try:
            model, measured = cut(self._model, inputs, distinct, closed=in_front)
        except CutRefused as error:
            raise RefusedError(f"{self.graph}: cannot be cut into layers: {error}") from error
        ranks = [value.shape.rank() if value.shape is not None else None for value in measured]
        return Piece(model, len(inputs), ranks, [distinct.index(output) for output in outputs], self.graph)


def _empty(shape: ir.Shape, windows: int, head_dim: int | None) -> list[int]:
    """The shape of a cache before the first token: open lengths are the batch, the past, and the size of a head."""
    still = [windows, 0, head_dim or 0]
    return [length if isinstance(length, int) else (still.pop(0) if still else 0) for length in shape]


def _numpy_type(value: ir.Value) -> Any:
    assert value.dtype is not None
    return value.dtype.numpy()
