"""Ridge least squares from streamed normal equations, the ridge chosen on rows that the fit did not see."""

from __future__ import annotations

import dataclasses

import numpy as np

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates, as shares of the mean eigenvalue of the features' covariance."""


class NormalEquations:
    """Sums over rows in float64: what a least-squares fit of ``y`` on ``x`` needs, whatever the number of rows."""

    def __init__(self, n_features: int, n_targets: int) -> None:
        self.n = 0
        self.xx = np.zeros((n_features, n_features))
        self.xy = np.zeros((n_features, n_targets))
        self.x = np.zeros(n_features)
        self.y = np.zeros(n_targets)
        self.yy = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows: x [..., features], y [..., targets], whose leading lengths agree."""
        targets = y.reshape(-1, y.shape[-1]).astype(np.float64)
        # Without features, for a bias alone, numpy could not infer the number of rows.
        rows = x.reshape(len(targets), x.shape[-1]).astype(np.float64)
        self.n += len(rows)
        self.xx += rows.T @ rows
        self.xy += rows.T @ targets
        self.x += rows.sum(axis=0)
        self.y += targets.sum(axis=0)
        self.yy += float((targets * targets).sum())

    def plus(self, other: NormalEquations) -> NormalEquations:
        """Both sets of rows together."""
        total = NormalEquations(*self.xy.shape)
        for name in ("n", "xx", "xy", "x", "y", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def squared_error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Sum of squared errors of ``x @ weight + bias`` over these rows."""
        fitted = float((weight * (self.xx @ weight)).sum())
        fitted += 2 * float(self.x @ weight @ bias) + self.n * float(bias @ bias)
        return max(self.yy - 2 * (float((weight * self.xy).sum()) + float(self.y @ bias)) + fitted, 0.0)


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """``y ~ x @ weight + bias``; ``unexplained`` is the share of y's squares left on rows that the fit did not see."""

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    unexplained: float


def fit_linear(
    seen: NormalEquations, unseen: NormalEquations, *, intercept: bool = True, rank: int | None = None
) -> LinearFit:
    """Fit on ``seen``, choose the ridge by the error on ``unseen``, and fit once more on both.

    With ``rank`` the weight is the best of that rank in the fit's own metric: the reduced-rank regression of Izenman
    (1975), its fitted values projected on their leading directions.
    """
    errors = [unseen.squared_error(*_solved(seen, ridge, intercept=intercept)) for ridge in RIDGES]
    best = int(np.argmin(errors))
    weight, bias = _solved(seen.plus(unseen), RIDGES[best], intercept=intercept)
    if rank is not None and rank < min(weight.shape):
        total = seen.plus(unseen)
        mean = total.x / total.n if intercept else np.zeros_like(total.x)
        _, vectors = np.linalg.eigh(weight.T @ (total.xx - total.n * np.outer(mean, mean)) @ weight)
        leading = vectors[:, -rank:]
        weight = weight @ leading @ leading.T
        if intercept:
            bias = total.y / total.n - mean @ weight
    return LinearFit(weight, bias, RIDGES[best], errors[best] / unseen.yy if unseen.yy else 0.0)


def factors_of(weight: np.ndarray, rank: int | None) -> tuple[np.ndarray, ...]:
    """The weight itself, or two matrices [d, rank] and [rank, d] whose product it is."""
    if rank is None or rank >= min(weight.shape):
        return (weight,)
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _solved(rows: NormalEquations, ridge: float, *, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    mean_x = rows.x / rows.n if intercept else np.zeros_like(rows.x)
    mean_y = rows.y / rows.n if intercept else np.zeros_like(rows.y)
    covariance = rows.xx - rows.n * np.outer(mean_x, mean_x)
    shift = ridge * float(np.trace(covariance)) / len(covariance)
    # A feature that never varies, as with a single repeated token, leaves nothing to invert.
    covariance[np.diag_indices_from(covariance)] += max(shift, 1e-12)
    weight = np.linalg.solve(covariance, rows.xy - rows.n * np.outer(mean_x, mean_y))
    return weight, mean_y - mean_x @ weight
