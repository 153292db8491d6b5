"""How a decoder graph is called: which inputs are tokens, mask and positions, which tensors carry the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.errors import RefusedError
from gatenorm_export.precision.head_sizes import open_head_sizes

TOKENS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


@dataclasses.dataclass(frozen=True)
class CacheInput:
    """One ``past`` input: shape [batch, heads, past length, size] with only the fixed lengths known."""

    name: str
    shape: tuple[int | None, ...]
    dtype: type[np.generic]

    def empty(self, batch: int) -> np.ndarray:
        """The cache of a sequence that has not begun: batch rows, past length 0."""
        return self.filled(batch, 0)

    def filled(self, batch: int, past: int) -> np.ndarray:
        """A cache of ``past`` zeros: the first open length is the batch, every later one the past."""
        lengths, seen = [], False
        for length in self.shape:
            lengths.append(length if length is not None else past if seen else batch)
            seen = seen or length is None
        return np.zeros(lengths, self.dtype)


@dataclasses.dataclass(frozen=True)
class DecodeSignature:
    """The inputs and outputs of a decoder graph, ``past[i]`` belonging to ``present[i]``."""

    plain: tuple[str, ...]
    past: tuple[CacheInput, ...]
    logits: str
    present: tuple[str, ...]


def signature_of(session: Any, graph: Path) -> DecodeSignature:
    """Read the signature off the ONNX Runtime session of ``graph``.

    Past inputs are all inputs but tokens, mask and positions; present outputs are all outputs but the first. They pair
    by position, as optimum's and ONNX Runtime's own clients pair them.

    Raises:
        RefusedError: the graph takes no tokens, or pasts and presents do not pair up.
        InputError: a size that the session leaves open cannot be told from the graph.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    plain = tuple(entry.name for entry in inputs if entry.name in {TOKENS, MASK, POSITIONS})
    shapes = {
        entry.name: tuple(length if isinstance(length, int) else None for length in entry.shape)
        for entry in inputs
        if entry.name not in plain
    }
    if TOKENS not in plain:
        raise RefusedError(f"{graph}: has no input {TOKENS}; only decoders over tokens can be compared so far")
    # Batch and past are open; a third open length is the size of a head.
    sizes = open_head_sizes(graph) if any(shape.count(None) > 2 for shape in shapes.values()) else {}
    past = tuple(
        CacheInput(
            entry.name,
            (*shapes[entry.name][:-1], sizes[entry.name]) if entry.name in sizes else shapes[entry.name],
            DTYPES.get(entry.type, np.float32),
        )
        for entry in inputs
        if entry.name in shapes
    )
    present = tuple(entry.name for entry in outputs[1:])
    if len(past) != len(present):
        raise RefusedError(f"{graph}: {len(past)} cache inputs but {len(present)} cache outputs; they must pair up")
    return DecodeSignature(plain, past, outputs[0].name, present)
