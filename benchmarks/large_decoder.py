"""A LLaMA-like decoder with KV cache as an ONNX graph of any size, its weights in one external data file.

Without ``real`` the data file is one hole: a graph of 26 GB takes a few megabytes of disk, and reads as zeros.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

DATA_NAME = "model.onnx.data"
_ALIGNMENT = 4096
_BLOCK_BYTES = 16 * 1024 * 1024
_HALF = ir.DataType.FLOAT16


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """The dimensions of a decoder; the default is LLaMA-13B, 26 GB in half precision."""

    n_layers: int = 40
    d_model: int = 5120
    n_heads: int = 40
    d_ffn: int = 13824
    vocabulary: int = 32000
    positions: int = 2048

    @property
    def head_size(self) -> int:
        """The size of one head's queries, keys and values."""
        return self.d_model // self.n_heads

    @classmethod
    def of_bytes(cls, wanted: float) -> Dimensions:
        """LLaMA-13B, or below 8 GB a decoder of TinyLlama's width, with as many layers as come closest to that size."""
        like = cls() if wanted > 8e9 else cls(d_model=2048, n_heads=32, d_ffn=5632)
        layer = 2 * (4 * like.d_model**2 + 3 * like.d_model * like.d_ffn)
        outside_layers = 2 * 2 * like.vocabulary * like.d_model
        return dataclasses.replace(like, n_layers=max(6, round((wanted - outside_layers) / layer)))


def make_decoder(dimensions: Dimensions, folder: Path, *, real: bool = False) -> Path:
    """Write ``model.onnx`` and its data file into ``folder``; return the graph's path.

    With ``real`` the data are random bytes, equal in every block of 16 MiB: no file system stores them as a hole.
    """
    writer = _Writer(dimensions, folder)
    model = writer.model()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / DATA_NAME).open("wb") as file:
        file.truncate(writer.end)
        block = os.urandom(_BLOCK_BYTES)
        for start in range(0, writer.end, _BLOCK_BYTES) if real else ():
            file.write(block[: writer.end - start])
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def copied_ranges(source: Path, copy: Path) -> list[tuple[int, int, int]]:
    """Of each tensor that a compacted graph kept: its place in the source's data file, its length, its new place."""
    before, after = (
        {value.name: value.const_value for value in ir.load(graph).graph.initializers.values()}
        for graph in (source, copy)
    )
    found = set()
    for name, there in after.items():
        here = before[name]
        if isinstance(here, ir.ExternalTensor) and isinstance(there, ir.ExternalTensor):
            found.add((here.offset or 0, here.nbytes, there.offset or 0))
    return sorted(found)


class _Writer:
    """Builds the graph, and counts the bytes of the data file."""

    def __init__(self, dimensions: Dimensions, folder: Path) -> None:
        self._size = dimensions
        self._folder = folder
        self._weights: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self.end = 0

    def model(self) -> ir.Model:
        size = self._size
        tokens = _input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
        mask = _input("attention_mask", ir.DataType.INT64, ["batch", "past + sequence"])
        cache: tuple[int | str, ...] = ("batch", size.n_heads, "past", size.head_size)
        pasts = [
            [_input(f"past_key_values.{i}.{part}", _HALF, cache) for part in ("key", "value")]
            for i in range(size.n_layers)
        ]
        past = self.op("Shape", pasts[0][0], start=2, end=3)
        total = self.op("Add", past, self.op("Shape", tokens, start=1, end=2))
        rotation = [
            self.op("Slice", self.weight(name, [size.positions, size.head_size]), past, total, self.ints(0))
            for name in ("cos", "sin")
        ]
        absent = self.op("Sub", self.half(1.0), self.op("Cast", mask, to=_HALF))
        penalty = self.op("Unsqueeze", self.op("Mul", absent, self.half(-60000.0)), self.ints(1, 2))
        stream = self.op("Gather", self.weight("embedding", [size.vocabulary, size.d_model]), tokens)
        presents: list[ir.Value] = []
        for index, (key, value) in enumerate(pasts):
            stream, *present = self.layer(index, stream, key, value, penalty, rotation)
            presents += present
        stream = self.norm("norm", stream)
        logits = self.op("MatMul", stream, self.weight("head", [size.d_model, size.vocabulary]))
        _declare(logits, "logits", _HALF, ["batch", "sequence", size.vocabulary])
        graph = ir.Graph(
            [tokens, mask, *(value for pair in pasts for value in pair)],
            [logits, *presents],
            nodes=self._nodes,
            initializers=self._weights,
            opset_imports={"": 17},
            name="decoder",
        )
        return ir.Model(graph, ir_version=8)

    def layer(
        self,
        index: int,
        stream: ir.Value,
        past_key: ir.Value,
        past_value: ir.Value,
        penalty: ir.Value,
        rotation: list[ir.Value],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """One pre-norm block; returns the stream and the caches behind it."""
        op, size = self.op, self._size
        normed = self.norm(f"layers.{index}.input_norm", stream)
        query, key, value = (self.heads(f"layers.{index}.{name}", normed) for name in ("q", "k", "v"))
        query, key = (self.rotated(heads, rotation) for heads in (query, key))
        present_key, present_value = op("Concat", past_key, key, axis=2), op("Concat", past_value, value, axis=2)
        for present, part in ((present_key, "key"), (present_value, "value")):
            lengths: tuple[int | str, ...] = ("batch", size.n_heads, "past + sequence", size.head_size)
            _declare(present, f"present.{index}.{part}", _HALF, lengths)
        scores = op("MatMul", query, op("Transpose", present_key, perm=[0, 1, 3, 2]))
        scaled = op("Mul", scores, self.half(1.0 / math.sqrt(size.head_size)))
        probabilities = op("Softmax", op("Add", scaled, penalty), axis=-1)
        context = op("Transpose", op("MatMul", probabilities, present_value), perm=[0, 2, 1, 3])
        flat = op("Reshape", context, self.ints(0, 0, size.d_model))
        stream = op("Add", stream, self.projected(f"layers.{index}.o", flat, size.d_model, size.d_model))
        normed = self.norm(f"layers.{index}.post_norm", stream)
        gate = self.projected(f"layers.{index}.gate", normed, size.d_model, size.d_ffn)
        up = self.projected(f"layers.{index}.up", normed, size.d_model, size.d_ffn)
        active = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
        stream = op("Add", stream, self.projected(f"layers.{index}.down", active, size.d_ffn, size.d_model))
        return stream, present_key, present_value

    def norm(self, name: str, stream: ir.Value) -> ir.Value:
        wide = self.op("Cast", stream, to=ir.DataType.FLOAT)
        mean = self.op("ReduceMean", self.op("Mul", wide, wide), axes=[-1])
        unit = self.op("Div", wide, self.op("Sqrt", self.op("Add", mean, self.constant(np.float32(1e-5)))))
        return self.op("Mul", self.op("Cast", unit, to=_HALF), self.weight(name, [self._size.d_model]))

    def heads(self, name: str, stream: ir.Value) -> ir.Value:
        flat = self.projected(name, stream, self._size.d_model, self._size.d_model)
        split = self.op("Reshape", flat, self.ints(0, 0, self._size.n_heads, self._size.head_size))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def rotated(self, heads: ir.Value, rotation: list[ir.Value]) -> ir.Value:
        half, last = self._size.head_size // 2, self.ints(3)
        left = self.op("Slice", heads, self.ints(0), self.ints(half), last)
        right = self.op("Slice", heads, self.ints(half), self.ints(2 * half), last)
        turned = self.op("Concat", self.op("Neg", right), left, axis=-1)
        return self.op("Add", self.op("Mul", heads, rotation[0]), self.op("Mul", turned, rotation[1]))

    def projected(self, name: str, stream: ir.Value, rows: int, columns: int) -> ir.Value:
        return self.op("MatMul", stream, self.weight(name, [rows, columns]))

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        """Append a node; returns its output."""
        node = ir.node(op_type, inputs, attributes=attributes, name=f"{op_type}_{len(self._nodes)}")
        node.outputs[0].name = f"{node.name}_output"
        self._nodes.append(node)
        return node.outputs[0]

    def weight(self, name: str, dims: list[int]) -> ir.Value:
        """An initializer in the data file, behind those before it."""
        start = -(-self.end // _ALIGNMENT) * _ALIGNMENT
        length = math.prod(dims) * 2
        tensor = ir.ExternalTensor(
            DATA_NAME, start, length, _HALF, shape=ir.Shape(dims), name=name, base_dir=self._folder
        )
        self.end = start + length
        return self._initializer(name, tensor)

    def ints(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def half(self, value: float) -> ir.Value:
        return self.constant(np.float16(value))

    def constant(self, array: np.ndarray | np.generic) -> ir.Value:
        name = f"constant_{len(self._weights)}"
        return self._initializer(name, ir.tensor(np.asarray(array), name=name))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self._weights.append(value)
        return value


def _input(name: str, dtype: ir.DataType, dims: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))


def _declare(value: ir.Value, name: str, dtype: ir.DataType, dims: Sequence[int | str]) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(dims)


def main() -> None:
    """``make FOLDER BYTES [--real]`` prints the number of layers, ``ranges SOURCE COPY`` the copied ranges, as JSON.

    The benchmark runs this in processes of its own: a process starts with its parent's peak of memory, so the one that
    measures must stay small.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("make")
    make.add_argument("folder", type=Path)
    make.add_argument("bytes", type=float)
    make.add_argument("--real", action="store_true")
    ranges = verbs.add_parser("ranges")
    ranges.add_argument("source", type=Path)
    ranges.add_argument("copy", type=Path)
    args = parser.parse_args()
    if args.verb == "make":
        dimensions = Dimensions.of_bytes(args.bytes)
        make_decoder(dimensions, args.folder, real=args.real)
        print(json.dumps(dimensions.n_layers))
    else:
        print(json.dumps(copied_ranges(args.source, args.copy)))


if __name__ == "__main__":
    main()
