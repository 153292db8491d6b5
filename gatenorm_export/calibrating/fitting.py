"""Fit repairs in closed form: one walk along the layers, the unpruned stream and the repaired one side by side.

Each repair is fitted to what is missing at its place, the unpruned stream minus the repaired one. So a later fit sees
what earlier removals did, and makes up for it as far as it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from gatenorm_export.calibrating.least_squares import NormalEquations, factors_of, fit_linear
from gatenorm_export.calibrating.stream import Rest, Stream, StreamModel
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.repairs import LayerRepair, Repair

WINDOWS_AT_ONCE = 1
"""What a layer makes of one window still fits the caches; larger batches are slower by a quarter and more."""
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
    repair = repair or LayerRepair(layer)
    rest = _rest_behind(model, repair, stream, tokens)
    if repair.down is None:
        return rest.following
    assert rest.hidden is not None
    return rest.following + model.down(layer).scale * _times(rest.hidden, model.down_change(layer, repair.down))


def _rest_behind(model: StreamModel, repair: LayerRepair, stream: Stream, tokens: np.ndarray) -> Rest:
    """What follows the stand-in of ``repair``, the MLP's last matrix being the unpruned one."""
    read = model.read(repair.layer, stream, tokens) if repair.factors else None
    return model.rest(repair.layer, stream, repair.branch(read, stream), tokens)


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
        """Take both streams past a layer; with a repair, remove its attention and fit what makes up for it."""
        model = self._model
        following, totals = np.empty_like(self._base), None
        stand_in = self._rows()
        if repair is not None and repair.mlp:
            model.down(layer)
            totals = np.empty_like(self._base)
        for batch in self._batches:
            tokens, base = self._tokens[batch], self._base[batch]
            branch, _ = model.attend(layer, base, tokens)
            rest = model.rest(layer, base, branch, tokens)
            following[batch] = rest.following
            if totals is not None:
                totals[batch] = rest.total
            if repair is not None and repair.stand_in != "none":
                stand_in.add(batch.start, *self._missing_branch(layer, batch, branch, rest.after, repair))
        fitted = None
        if repair is not None:
            fitted = stand_in.stand_in(layer, repair)
            if totals is not None:
                fitted = self._with_down(fitted, totals)
            self.repairs[layer] = fitted
        if self._apart or (fitted is None and self._repaired is self._base):
            self._base = self._repaired = following
            return
        repaired = np.empty_like(following)
        for batch in self._batches:
            tokens, stream = self._tokens[batch], self._repaired[batch]
            if fitted is None:
                repaired[batch] = model.following(layer, stream, tokens)
            else:
                repaired[batch] = repaired_layer(model, layer, stream, tokens, fitted)
        self._base, self._repaired = following, repaired

    def _missing_branch(
        self, layer: int, batch: slice, base_branch: Stream, base_after: Stream, repair: Repair
    ) -> tuple[np.ndarray, Stream]:
        """What a stand-in reads, and what it must add for the repaired stream to become the unpruned one."""
        model, tokens, base, stream = self._model, self._tokens[batch], self._base[batch], self._repaired[batch]
        residual = model.blocks[layer].site.residual
        if residual.form == "residual" and residual.kept == (residual.stream,):
            missing = base_branch + base - stream
        else:
            missing = base_after - model.rest(layer, stream, np.zeros_like(stream), tokens).after
        if repair.stand_in == "bias":
            return np.zeros((*stream.shape[:-1], 0), np.float32), missing
        return model.read(layer, stream, tokens), missing

    def _with_down(self, fitted: LayerRepair, totals: Stream) -> LayerRepair:
        """Fit the MLP's last matrix to what is missing of the unpruned layer's whole update, the stand-in in place."""
        model, layer, rows = self._model, fitted.layer, self._rows()
        for batch in self._batches:
            tokens, stream = self._tokens[batch], self._repaired[batch]
            rest = _rest_behind(model, fitted, stream, tokens)
            assert rest.hidden is not None
            assert rest.total is not None
            rows.add(batch.start, rest.hidden, totals[batch] - rest.total)
        fit = fit_linear(*rows.parts(), intercept=False)
        down = model.down_weight(layer) + fit.weight / model.down(layer).scale
        return dataclasses.replace(fitted, down=_single(down), ridge=fit.ridge, unexplained=fit.unexplained)

    def _rows(self) -> _Rows:
        return _Rows(len(self._tokens))


class _Rows:
    """The rows that one fit sees, and those that choose its ridge."""

    def __init__(self, n_windows: int) -> None:
        self._parts: tuple[NormalEquations, NormalEquations] | None = None
        # With few windows every second one: a ridge chosen on nothing is no choice.
        self._every = UNSEEN_EVERY if n_windows >= 2 * UNSEEN_EVERY else 2
        self._single = n_windows < 2

    def add(self, start: int, x: np.ndarray, y: np.ndarray) -> None:
        """Add windows ``start`` on."""
        if self._parts is None:
            sizes = x.shape[-1], y.shape[-1]
            self._parts = NormalEquations(*sizes), NormalEquations(*sizes)
        windows = np.arange(start, start + len(x))
        unseen = windows % self._every == self._every - 1
        for part, chosen in zip(self._parts, (~unseen, unseen), strict=True):
            if chosen.any():
                part.add(x[chosen], y[chosen])

    def parts(self) -> tuple[NormalEquations, NormalEquations]:
        """Both parts; a single window is both."""
        assert self._parts is not None
        seen, unseen = self._parts
        return (seen, seen) if self._single else (seen, unseen)

    def stand_in(self, layer: int, repair: Repair) -> LayerRepair:
        """Solve for what takes the place of attention; nothing where the repair has no stand-in."""
        if repair.stand_in == "none":
            return LayerRepair(layer)
        seen, unseen = self.parts()
        if repair.stand_in == "bias":
            left = unseen.squared_error(np.zeros_like(unseen.xy), seen.y / seen.n)
            total = seen.plus(unseen)
            unexplained = left / unseen.yy if unseen.yy else 0.0
            return LayerRepair(layer, bias=_single(total.y / total.n), unexplained=unexplained)
        fit = fit_linear(seen, unseen, rank=repair.rank)
        factors = tuple(_single(factor) for factor in factors_of(fit.weight, repair.rank))
        return LayerRepair(layer, bias=_single(fit.bias), factors=factors, ridge=fit.ridge, unexplained=fit.unexplained)


def _times(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.asarray((x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[-1]))


def _single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
