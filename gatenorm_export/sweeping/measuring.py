"""Measure one set of removed layers: quality on the graph cut into layers, the rest on a pruned graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gatenorm_export.comparing.latency import measure_latency
from gatenorm_export.comparing.quality import WINDOW_TOKENS
from gatenorm_export.comparing.text import Text, tokenize
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.progress import Progress
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import Latency, PrunedGraph
from gatenorm_export.repairs import Repair, Repaired
from gatenorm_export.sweeping.prepare import Subject

if TYPE_CHECKING:
    from gatenorm_export.calibrating import Corpus
    from gatenorm_export.calibrating.metering import Cost

LATENCY_TOKENS = (256,)
"""One length: a sweep compares cells with each other, and `compare` measures a chosen one at several."""


class Bench:
    """A graph ready to be measured with any layers removed; making one cuts the graph and measures it unpruned.

    Raises:
        RefusedError: the graph cannot be cut into layers, or its logits are not finite.
    """

    def __init__(self, graph: Path, windows: np.ndarray, corpus: Corpus, progress: Progress) -> None:
        from gatenorm_export.calibrating import StreamModel
        from gatenorm_export.calibrating.metering import Meter

        self._graph, self.corpus, self._progress = graph, corpus, progress
        with progress.task("cut the graph into layers"):
            self.model = StreamModel(graph)
        with progress.task("measure the unpruned model"):
            self._meter = Meter(self.model, windows)
        self.base_ppl = self._meter.base_ppl
        if not math.isfinite(self.base_ppl):
            raise RefusedError(f"{graph}: its logits are not finite on the text; it cannot be judged")

    def quality(self, layers: tuple[int, ...], repair: Repair) -> tuple[Cost, Repaired | None]:
        """Fit the repair, and measure what the removal costs with it.

        Raises:
            RefusedError: a layer cannot be removed or repaired in that way, or what is left has no finite perplexity.
        """
        from gatenorm_export.calibrating import fit_repairs

        repaired, corpus = None, self.corpus
        if not repair.nothing:
            fitted = fit_repairs(self.model, corpus.fitted, layers, repair, progress=self._progress)
            repaired = Repaired(repair, fitted, corpus.name, corpus.sha256, int(corpus.fitted.size))
        with self._progress.task("measure quality"):
            self._meter.adopt(frozenset(layers), repaired.layers if repaired is not None else {})
            cost = self._meter.cost(None)
        if not (math.isfinite(cost.ppl) and math.isfinite(cost.kl_nats)):
            raise RefusedError(f"{self._graph}: without layers {', '.join(map(str, layers))} perplexity is not finite")
        return cost, repaired

    def pruned(self, layers: tuple[int, ...], repaired: Repaired | None, folder: Path) -> tuple[PrunedGraph, Path]:
        """The pruned graph in ``folder``, and its record.

        Raises:
            RefusedError: the graph cannot be pruned so.
            OutputError: the pruned graph cannot be written.
        """
        # Not model.onnx: beside a file of another name no tokenizer and configs are written, which nobody needs here.
        graph = folder / "pruned.onnx"
        return prune_graph(self._graph, graph, layers=layers, repaired=repaired, progress=self._progress), graph

    def latency(self, pruned: Path) -> Latency:
        """The graph and a pruned one timed in turns.

        Raises:
            InputError: ONNX Runtime cannot run the pruned graph.
        """
        return measure_latency(self._graph, pruned, sequences=LATENCY_TOKENS, progress=self._progress)


def judged_windows(text: Text, subject: Subject, limit: int, progress: Progress) -> np.ndarray:
    """The first ``limit`` tokens of a text as windows [n, 256]; a text shorter than one window is one.

    Raises:
        InputError: there is no tokenizer, or the text is too short to judge anything by.
    """
    tokens = tokenize(text, subject.graph.parent, subject.model, limit=limit)
    if tokens is None:
        raise InputError(f"{subject.graph.parent}: holds no tokenizer to read the text with; copy the model's there")
    n = len(tokens) // WINDOW_TOKENS
    if not n:
        return tokens[None]
    left = len(tokens) - n * WINDOW_TOKENS
    if left:
        progress.say(f"{text.name}: quality is judged on {n} windows of {WINDOW_TOKENS} tokens; {left} are left over")
    return tokens[: n * WINDOW_TOKENS].reshape(n, WINDOW_TOKENS)
