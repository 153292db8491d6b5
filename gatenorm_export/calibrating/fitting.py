"""Fit repairs in closed form: one walk along the layers, the unpruned stream and the repaired one side by side.

Each repair is fitted to what is missing at its place, the unpruned stream minus the repaired one. So a later fit sees
what earlier removals did, and makes up for it as far as it can.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from gatenorm_export.calibrating.least_squares import LinearFit, NormalEquations, factors_of, fit_linear
from gatenorm_export.calibrating.stream import Stream, StreamModel
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.repairs import LayerRepair, Repair

WINDOWS_AT_ONCE = 8
UNSEEN_EVERY = 4
"""Every fourth window chooses the ridge."""


def fit_repairs(
    model: StreamModel,
    tokens: np.ndarray,
    drop: Collection[int],
    repair: Repair,
    *,
    progress: Progress | None = None,
) -> dict[int, LayerRepair]:
    """Fit what takes the place of the attention of ``drop``, on tokens [windows, length], layer by layer.

    Raises:
        RefusedError: with ``mlp``, a layer's MLP does not end in one float matrix.
    """
    return _fit(_Walk(model, tokens), drop, repair, f"fit {repair} for {len(set(drop))} layers", progress)


def fit_each(
    model: StreamModel,
    tokens: np.ndarray,
    candidates: Collection[int],
    repair: Repair,
    *,
    progress: Progress | None = None,
) -> dict[int, LayerRepair]:
    """Fit a repair for each candidate as if it alone were removed; one walk serves all."""
    label = f"fit {repair} for each of {len(candidates)} candidates"
    return _fit(_Walk(model, tokens, apart=True), candidates, repair, label, progress)


def _fit(
    walk: _Walk, chosen: Collection[int], repair: Repair, label: str, progress: Progress | None
) -> dict[int, LayerRepair]:
    """Walk as far as the last of the ``chosen`` layers."""
    layers = walk.layers_up_to(chosen)
    with (progress or Quiet()).task(label, total=len(layers)) as bar:
        for layer in layers:
            walk.step(layer, repair if layer in chosen else None)
            bar.advance()
    return walk.repairs


def repaired_layer(
    model: StreamModel, layer: int, stream: Stream, tokens: np.ndarray, repair: LayerRepair | None
) -> Stream:
    """The stream behind a layer whose attention is removed and replaced by ``repair``."""
    read = model.read(layer, stream, tokens) if repair is not None and repair.factors else None
    branch = repair.branch(read, stream) if repair is not None else np.zeros_like(stream)
    rest = model.rest(layer, stream, branch, tokens)
    if repair is None or repair.down is None:
        return rest.following
    assert rest.hidden is not None
    change = repair.down - model.down_weight(layer)
    return rest.following + model.down(layer).scale * _times(rest.hidden, change)


class _Walk:
    """Both streams in front of the layer that is next, for all windows."""

    def __init__(self, model: StreamModel, tokens: np.ndarray, *, apart: bool = False) -> None:
        self._model = model
        self._tokens = tokens
        self._apart = apart
        self._batches = [slice(start, start + WINDOWS_AT_ONCE) for start in range(0, len(tokens), WINDOWS_AT_ONCE)]
        self._base = np.concatenate([model.embed(tokens[batch]) for batch in self._batches])
        # One array for both as long as nothing was removed.
        self._repaired = self._base
        self.repairs: dict[int, LayerRepair] = {}

    def layers_up_to(self, chosen: Collection[int]) -> list[int]:
        """The layers from the first to the last of ``chosen``; none where nothing is chosen."""
        last = max(chosen, default=-1)
        return [layer for layer in self._model.layers if layer <= last]

    def step(self, layer: int, repair: Repair | None) -> None:
        """Take both streams past a layer; with a repair, fit it on the way."""
        model = self._model
        following, targets = np.empty_like(self._base), _Targets(model, layer, repair, len(self._tokens))
        for batch in self._batches:
            tokens, base = self._tokens[batch], self._base[batch]
            branch, _ = model.attend(layer, base, tokens)
            rest = model.rest(layer, base, branch, tokens)
            following[batch] = rest.following
            if repair is not None:
                targets.add(batch.start, self._repaired[batch], tokens, branch, base, rest.after, rest.total)
        fitted = targets.fitted() if repair is not None else None
        if fitted is not None:
            self.repairs[layer] = fitted
        if self._apart or (repair is None and self._repaired is self._base):
            self._base = self._repaired = following
            return
        repaired = np.empty_like(following)
        for batch in self._batches:
            tokens, stream = self._tokens[batch], self._repaired[batch]
            if repair is None:
                repaired[batch] = model.following(layer, stream, tokens)
            else:
                repaired[batch] = repaired_layer(model, layer, stream, tokens, fitted)
        self._base, self._repaired = following, repaired


class _Targets:
    """The rows that one layer's repair is fitted on."""

    def __init__(self, model: StreamModel, layer: int, repair: Repair | None, n_windows: int) -> None:
        self._model = model
        self._layer = layer
        self._repair = repair or Repair()
        self._parts: tuple[NormalEquations, NormalEquations] | None = None
        # With few windows every second one: a ridge chosen on nothing is no choice.
        self._every = UNSEEN_EVERY if n_windows >= 2 * UNSEEN_EVERY else 2
        self._single = n_windows < 2

    def add(
        self,
        start: int,
        stream: Stream,
        tokens: np.ndarray,
        base_branch: Stream,
        base: Stream,
        base_after: Stream,
        base_total: Stream | None,
    ) -> None:
        """Add windows ``start`` on: the repaired stream in front of the layer, and what the unpruned one becomes."""
        kind, model, layer = self._repair.kind, self._model, self._layer
        if kind == "none":
            return
        if kind == "mlp":
            model.down(layer)
            rest = model.rest(layer, stream, np.zeros_like(stream), tokens)
            assert rest.hidden is not None
            assert rest.total is not None
            assert base_total is not None
            self._rows(start, rest.hidden, base_total - rest.total)
            return
        residual = model.blocks[layer].site.residual
        if residual.form == "residual" and residual.kept == (residual.stream,):
            missing = base_branch + base - stream
        else:
            missing = base_after - model.rest(layer, stream, np.zeros_like(stream), tokens).after
        read = model.read(layer, stream, tokens) if kind == "linear" else np.zeros((*stream.shape[:-1], 0), np.float32)
        self._rows(start, read, missing)

    def _rows(self, start: int, x: np.ndarray, y: np.ndarray) -> None:
        if self._parts is None:
            sizes = x.shape[-1], y.shape[-1]
            self._parts = NormalEquations(*sizes), NormalEquations(*sizes)
        windows = np.arange(start, start + len(x))
        unseen = windows % self._every == self._every - 1
        for part, chosen in zip(self._parts, (~unseen, unseen), strict=True):
            if chosen.any():
                part.add(x[chosen], y[chosen])

    def fitted(self) -> LayerRepair:
        """Solve for the repair."""
        kind, layer = self._repair.kind, self._layer
        if kind == "none":
            return LayerRepair(layer)
        assert self._parts is not None
        seen, unseen = self._parts
        if self._single:
            seen, unseen = seen, seen
        if kind == "bias":
            total = seen.plus(unseen)
            bias = total.y / total.n
            left = unseen.squared_error(np.zeros_like(unseen.xy), seen.y / seen.n)
            return LayerRepair(layer, bias=_single(bias), unexplained=left / unseen.yy if unseen.yy else 0.0)
        fit = fit_linear(seen, unseen, intercept=kind == "linear", rank=self._repair.rank)
        if kind == "mlp":
            scale = self._model.down(layer).scale
            down = self._model.down_weight(layer) + fit.weight / scale
            return LayerRepair(layer, down=_single(down), ridge=fit.ridge, unexplained=fit.unexplained)
        return self._linear(fit)

    def _linear(self, fit: LinearFit) -> LayerRepair:
        factors = tuple(_single(factor) for factor in factors_of(fit.weight, self._repair.rank))
        return LayerRepair(
            self._layer, bias=_single(fit.bias), factors=factors, ridge=fit.ridge, unexplained=fit.unexplained
        )


def _times(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.asarray((x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[-1]))


def _single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
