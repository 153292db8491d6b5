"""Sizes of heads that cache inputs leave open, as onnxruntime-genai's do: the attention operators tell them."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.graphs import load_graph
from gatenorm_export.precision.graph_changes import caches_of


def open_head_sizes(graph: Path) -> dict[str, int]:
    """Cache input -> the size of its heads, of inputs whose last length is open, and called alike before and after.

    Raises:
        InputError: it is no ONNX file, or cannot be analysed.
    """
    model = load_graph(graph)
    caches = caches_of(model, graph)
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    found: dict[str, int] = {}
    for past, present in caches.past.items():
        before, after = (values[name].shape if name in values else None for name in (past, present))
        if past in caches.sizes and before is not None and after is not None and len(before) == len(after):
            is_open = not isinstance(before[-1], int)
            if is_open and str(before[-1]) == str(after[-1]):
                found[past] = caches.sizes[past]
    return found
