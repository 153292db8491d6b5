"""One vocabulary for the lengths of a decoder's inputs, where the graph has several words for one, or none.

Exporters agree on what the inputs are and not on what their lengths are called: onnxruntime-genai's mask has a
``total_sequence_length`` and its cache an open size of a head, torch's exporter gives each input symbols of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.building.graph_inputs import MASK, POSITIONS, TOKENS, Inputs, Length
from gatenorm_export.graphs import load_graph
from gatenorm_export.precision.head_sizes import open_head_sizes

Place = tuple[str, int]
"""An input and one of its axes."""
_WORD = re.compile(r"\w+(\[\d+\])?")


def in_one_vocabulary(graph: Path, inputs: Inputs) -> tuple[Inputs, frozenset[str]]:
    """A decoder's inputs with the same word for the same length, and the words for a past; others come back unchanged.

    By what an input is for: positions [batch, step] have the lengths of the tokens, a mask is as long as past + step,
    the first length of a cache is the batch unless another one is. An open size of a head becomes what the attention
    operators say of it. A word that several caches share is kept, as windowed layers have a past of their own. Without
    caches, as where all attention was removed, only a mask that nothing reads is taken to be as long.

    Raises:
        InputError: the graph cannot be analysed.
    """
    if TOKENS not in inputs or len(inputs[TOKENS]) != 2:
        return inputs, frozenset()
    batch, step = inputs[TOKENS]
    told: dict[Place, Length] = {}
    if len(inputs.get(POSITIONS, ())) == 2:
        told |= {(POSITIONS, 0): batch, (POSITIONS, 1): step}
    pasts = _pasts(graph, inputs, told)
    words = set(pasts.values())
    mask = inputs.get(MASK, ())
    if len(mask) == 2 and (pasts or (mask[1].name not in {None, step.name} and _unread(graph, MASK))):
        told[MASK, 0] = batch
        if mask[1].name is not None and mask[1].name not in {step.name, *words}:
            # Without caches the past has no word of its own; the mask's stands for it.
            past = next(iter(pasts.values()), mask[1].name)
            told[MASK, 1] = Length(None, (past, *step.names), step.constant, mask[1].text)
            words.add(past)
    unified = {
        name: tuple(
            told.get((name, axis), length) if length.fixed is None else length for axis, length in enumerate(shape)
        )
        for name, shape in inputs.items()
    }
    return unified, frozenset(words)


def _unread(graph: Path, entry: str) -> bool:
    value = next(value for value in load_graph(graph).graph.inputs if value.name == entry)
    return not value.uses() and not value.is_graph_output()


def _pasts(graph: Path, inputs: Inputs, told: dict[Place, Length]) -> dict[Place, str]:
    """Where each cache's past is, and its word; ``told`` gets what the caches' other lengths are."""
    batch, step = inputs[TOKENS]
    uses = Counter(length.name for shape in inputs.values() for length in shape)
    caches = {name: shape for name, shape in inputs.items() if len(shape) > 2}
    pasts: dict[Place, str] = {}
    open_sizes = []
    for name, shape in caches.items():
        words = [(axis, word) for axis, word in _words(shape) if word != step.name]
        batches = [axis for axis, word in words if word == batch.name]
        if not batches and words and words[0][0] == 0 and uses[words[0][1]] == 1 and batch.name is not None:
            told[name, 0] = batch
            batches = [0]
        rest = [(axis, word) for axis, word in words if axis not in batches]
        if len(rest) == 1 and (batches or batch.fixed is not None):
            pasts[name, rest[0][0]] = rest[0][1]
        elif rest:
            open_sizes.append(name)
    if open_sizes:
        sizes = {(name, len(caches[name]) - 1): size for name, size in open_head_sizes(graph).items()}
        for name in open_sizes:
            rest = [(axis, word) for axis, word in _words(caches[name]) if word not in (batch.name, step.name)]
            told |= {(name, axis): Length(sizes[name, axis]) for axis, _ in rest if (name, axis) in sizes}
            left = [(axis, word) for axis, word in rest if (name, axis) not in sizes]
            pasts |= {(name, axis): word for axis, word in left if len(left) == 1}
    # What only one input calls its past is no word of the graph's.
    first = next((word for word in pasts.values()), None)
    for place, word in pasts.items():
        if first is not None and uses[word] == 1:
            told[place] = Length(None, (first,), text=inputs[place[0]][place[1]].text)
            pasts[place] = first
    return pasts


def _words(shape: tuple[Length, ...]) -> Iterator[tuple[int, str]]:
    """The axes of a shape that one plain word stands for."""
    for axis, length in enumerate(shape):
        if length.name is not None and _WORD.fullmatch(length.name.rpartition(".")[2]):
            yield axis, length.name
