"""Measure what removing a layer costs: the unpruned distributions against those of a chain of layers with some gone.

The stream in front of every layer of the plan so far is kept, so that a candidate costs only the layers behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gatenorm_export.calibrating.fitting import WINDOWS_AT_ONCE, repaired_layer
from gatenorm_export.calibrating.stream import Stream, StreamModel
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.repairs import LayerRepair


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a set of removed layers, on the measured windows: KL(base || removed) in nats per token, and perplexity."""

    kl_nats: float
    ppl: float


# The unpruned distributions of ten windows at a vocabulary of 49k; with a larger one the rest is computed again.
_KEPT_BYTES = 600_000_000


@dataclasses.dataclass(frozen=True)
class _Distribution:
    """Probabilities [tokens, vocabulary] in float32, and the entropy of each row in nats."""

    probabilities: np.ndarray
    entropies: np.ndarray


def _log_sums(logits: np.ndarray) -> np.ndarray:
    """log sum exp of each row [tokens], in float64; the terms are float32, whose rounding averages out."""
    highest = logits.max(axis=-1, keepdims=True)
    return np.asarray(highest[:, 0] + np.log(np.exp(logits - highest).sum(axis=-1, dtype=np.float64)))


class Meter:
    """Measures removals on windows of tokens [n, length]."""

    def __init__(self, model: StreamModel, tokens: np.ndarray) -> None:
        self._model = model
        self._tokens = tokens
        self._batches = [slice(start, start + WINDOWS_AT_ONCE) for start in range(0, len(tokens), WINDOWS_AT_ONCE)]
        self._dropped: frozenset[int] = frozenset()
        self._repairs: Mapping[int, LayerRepair] = {}
        self._streams: dict[int, Stream] = {}
        self._end = self._walk(model.layers[0], self._embed(), frozenset(), keep=self._streams)
        self._planned = self._end
        """The stream behind the last layer of the plan, and what of the plan was changed since."""
        self._changed: set[int] = set()
        self._kept: dict[int, _Distribution] = {}
        self._base_nats = [self._nats(row, index) for index, row in enumerate(self._end)]
        self.base_ppl = self.base_ppl_of(None)

    def base_ppl_of(self, windows: int | None) -> float:
        """The unpruned perplexity on the first ``windows`` windows, or on all."""
        return float(np.exp(np.mean(self._base_nats[:windows])))

    def adopt(self, dropped: frozenset[int], repairs: Mapping[int, LayerRepair]) -> None:
        """Make ``dropped`` the plan that candidates are measured on top of, repaired by ``repairs``."""
        kept = dropped & self._dropped
        changed = (dropped ^ self._dropped) | {n for n in kept if repairs.get(n) is not self._repairs.get(n)}
        self._changed |= changed
        self._dropped, self._repairs = dropped, repairs

    def cost(self, layer: int | None, *, windows: int | None = None) -> Cost:
        """What the plan costs with ``layer`` removed as well (None: as it is), on the first ``windows`` of them."""
        self._catch_up()
        if layer is None:
            stream = self._planned[:windows]
        else:
            stream = self._walk(layer, self._streams[layer][:windows], self._dropped | {layer})
        kl, nats = [], []
        for index, row in enumerate(stream):
            logits = self._logits(row, index)
            base, normalisers = self._distribution(index), _log_sums(logits)
            # KL = sum p log p - sum p (z - log sum exp z): one pass over the logits.
            cross = normalisers - np.einsum("tv,tv->t", base.probabilities, logits)
            kl.append(float((cross - base.entropies).mean()))
            nats.append(self._loss(logits, normalisers, index))
        return Cost(max(float(np.mean(kl)), 0.0), float(np.exp(np.mean(nats))))

    def _catch_up(self) -> None:
        """Walk only when a cost is asked for: after the last step of a search, or when resuming one, none is."""
        if self._changed:
            first = min(self._changed, key=self._model.layers.index)
            self._planned = self._walk(first, self._streams[first], self._dropped, keep=self._streams)
            self._changed.clear()

    def _distribution(self, index: int) -> _Distribution:
        """What the unpruned model predicts in a window; kept while there is room for it."""
        found = self._kept.get(index)
        if found is None:
            logits = self._logits(self._end[index], index)
            normalisers = _log_sums(logits)
            probabilities = np.exp(logits - normalisers[:, None].astype(np.float32))
            entropies = normalisers - np.einsum("tv,tv->t", probabilities, logits)
            found = _Distribution(probabilities, entropies)
            if probabilities.nbytes * (len(self._kept) + 1) <= _KEPT_BYTES:
                self._kept[index] = found
        return found

    def _nats(self, row: np.ndarray, index: int) -> float:
        logits = self._logits(row, index)
        return self._loss(logits, _log_sums(logits), index)

    def _loss(self, logits: np.ndarray, normalisers: np.ndarray, index: int) -> float:
        """Mean loss of a window's predicted tokens, in nats."""
        rows = np.arange(len(logits) - 1)
        return float((normalisers[:-1] - logits[rows, self._tokens[index, 1:]]).mean())

    def _logits(self, row: np.ndarray, index: int) -> np.ndarray:
        return np.asarray(self._model.logits(row[None], self._tokens[index][None])[0])

    def _embed(self) -> Stream:
        return np.concatenate([self._model.embed(self._tokens[batch]) for batch in self._batches])

    def _walk(
        self, start: int, stream: Stream, dropped: frozenset[int], keep: dict[int, Stream] | None = None
    ) -> Stream:
        """The stream behind the last layer, from the one in front of ``start``."""
        model = self._model
        for layer in model.layers[model.layers.index(start) :]:
            if keep is not None:
                keep[layer] = stream
            following = np.empty_like(stream)
            for batch in self._batches:
                part, tokens = stream[batch], self._tokens[: len(stream)][batch]
                if not len(part):
                    continue
                if layer in dropped:
                    following[batch] = repaired_layer(model, layer, part, tokens, self._repairs.get(layer))
                else:
                    following[batch] = model.following(layer, part, tokens)
            stream = following
        return stream


class Measurements:
    """Costs measured so far, kept in a file, so that an interrupted search goes on where it was."""

    def __init__(self, path: Path | None, *decides: str) -> None:
        self._kept = KeptWork(path, *decides)

    def get(self, name: str) -> Cost | None:
        """A cost that was measured before."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        try:
            kl_nats, ppl = kept
            return Cost(float(kl_nats), float(ppl))
        except (TypeError, ValueError):
            return None

    def put(self, name: str, cost: Cost) -> Cost:
        """Keep a cost."""
        self._kept.put(name, dataclasses.astuple(cost))
        return cost

    def forget(self) -> None:
        """Remove the file: the search that it served is finished."""
        self._kept.forget()
