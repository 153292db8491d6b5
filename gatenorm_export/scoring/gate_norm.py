"""The Gate-Norm formula on arrays (arXiv 2512.20636), exact up to rounding that is bounded and reported."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gatenorm_export.scoring.bfloat16_products import BFLOAT16, Bfloat16Products, Multiply, bfloat16_products
from gatenorm_export.scoring.pairing import blas_threads

Variant = Literal["all-heads", "per-head"]

ROWS_AT_A_TIME = 16
"""Rows that are converted to float32 at once: they stay in cache."""

UNIT_FLOAT32, UNIT_FLOAT64 = 2.0**-24, 2.0**-53
"""Unit roundoff: half the distance from 1 to the next number."""

# Up to here float64 costs a layer less than a tenth of a second on two cores; beyond, float32 is twice as fast.
_FLOAT64_UP_TO_FLOPS = 1e10
# Terms that float32 adds up before float64 takes over. Longer sums loosen the bound, shorter ones cost time: at 1024
# the sums in float64 are a tenth of the work.
_TERMS = 1024
_TILE = 1024
# Where the entries of the gate matrix are larger or smaller, their squares may leave float32.
_FLOAT32_ENTRIES = (1e-15, 1e15)
# A bound above this on a float32 score speaks of numbers that leave its range.
_ROUNDED_TOO_MUCH = 0.01


@dataclass(frozen=True)
class Exact:
    """A score without any sampling. ``rounding`` bounds its relative error: no order of additions makes it larger."""

    score: float
    rounding: float
    arithmetic: str


def gate_norm(query: np.ndarray, key: np.ndarray, *, head_dim: int, variant: Variant = "all-heads") -> float:
    """The score of one layer, as :func:`exact_score` gives it."""
    return exact_score(query, key, head_dim=head_dim, variant=variant).score


def exact_score(
    query: np.ndarray,
    key: np.ndarray,
    *,
    head_dim: int,
    variant: Variant = "all-heads",
    float64: bool = False,
) -> Exact:
    """The score m = ||Wq Wk^T||_F of one layer, all heads together, or sqrt(sum_h ||Wq_h Wk_h^T||_F^2) per head.

    ``query`` is [n_heads * head_dim, d_model] and ``key`` [n_kv_heads * head_dim, d_model], as PyTorch keeps Linear
    weights, in any float type. In grouped-query attention each key head is repeated to the query heads of its group, so
    that the gate matrix is sum_g (sum_{h in g} Wq_h)^T Wk_g.

    The d_model x d_model gate matrix is never held. Where the key projection is narrower than the model,
    ||A^T B||_F^2 = <A A^T, B B^T>, two Gram matrices of the size of the key projection; otherwise the product is made
    tile by tile, which then costs no more and rounds better.

    Small layers, and all with ``float64``, are computed in float64. Large ones multiply in float32, where products of
    bfloat16 are exact, and add up at most 1024 terms before float64 takes over; the bound is gamma_n = n u / (1 - n u)
    on sums of n terms in any order (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).

    Raises:
        ValueError: the shapes are no whole heads, or the query heads do not divide among the key heads.
    """
    check_shapes(query, key, head_dim)
    if variant == "per-head":
        return _per_head(query, key, head_dim)
    if not float64 and is_large(query, key):
        found = _compute(query, key, head_dim, np.float32)
        if in_float32_range(found.score, key.shape[1]) and found.rounding < _ROUNDED_TOO_MUCH:
            return found
    return _compute(query, key, head_dim, np.float64)


def exact_flops(rows: int, width: int) -> float:
    """Operations of the exact score of a layer whose key weights are [rows, width]: two symmetric Gram matrices, or the
    product."""
    return 2.0 * rows * width * min(rows, width)


def is_large(query: np.ndarray, key: np.ndarray) -> bool:
    """Whether float32 is worth its rounding. Weights stored in float64 keep their precision."""
    return np.float64 not in (query.dtype, key.dtype) and exact_flops(key.shape[0], key.shape[1]) > _FLOAT64_UP_TO_FLOPS


def in_float32_range(score: float, width: int) -> bool:
    """Whether a gate matrix of that norm has entries whose squares float32 can hold; False for NaN, infinity and 0."""
    low, high = _FLOAT32_ENTRIES
    return low * width < score < high * width


def check_shapes(query: np.ndarray, key: np.ndarray, head_dim: int) -> None:
    """Raise ValueError where the shapes are no whole heads, or the query heads do not divide among the key heads."""
    if query.ndim != 2 or key.ndim != 2 or head_dim < 1:
        raise ValueError(f"query {query.shape} and key {key.shape} are no matrices of heads of {head_dim}")
    (query_rows, d_model), (key_rows, key_width) = query.shape, key.shape
    if query_rows % head_dim or key_rows % head_dim or d_model != key_width or not key_rows or query_rows % key_rows:
        raise ValueError(f"query {query.shape} and key {key.shape} do not fit heads of {head_dim}")


def group_rows(query: np.ndarray, key_rows: int, head_dim: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """The group sum in blocks of rows that stay in cache: (rows of the sum, the blocks to add up for them)."""
    group = len(query) // key_rows
    for head in range(key_rows // head_dim):
        for start in range(0, head_dim, ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, head_dim)
            first = head * group * head_dim
            blocks = [query[first + h * head_dim + start : first + h * head_dim + stop] for h in range(group)]
            yield slice(head * head_dim + start, head * head_dim + stop), blocks


def by_group(rows: np.ndarray, key_rows: int, head_dim: int) -> np.ndarray:
    """Rows of heads [n_heads * head_dim, width] as [n_kv_heads, heads of a group, head_dim, width]."""
    return rows.reshape(key_rows // head_dim, -1, head_dim, rows.shape[1])


def group_sum(query: np.ndarray, key_rows: int, head_dim: int, dtype: type[np.floating]) -> np.ndarray:
    """The query heads of each key head added up, [key_rows, d_model] in ``dtype``."""
    summed = np.empty((key_rows, query.shape[1]), dtype)
    products = bfloat16_products() if dtype is np.float32 and query.dtype == BFLOAT16 else None
    if products is not None and query.flags.c_contiguous:
        for own, target in zip(by_group(query, key_rows, head_dim), by_group(summed, key_rows, head_dim), strict=True):
            products.add(own, target[0])
        return summed
    converted = np.empty((ROWS_AT_A_TIME, query.shape[1]), dtype)
    for rows, blocks in group_rows(query, key_rows, head_dim):
        target = summed[rows]
        np.copyto(target, blocks[0], casting="unsafe")
        for block in blocks[1:]:
            np.copyto(converted[: len(block)], block, casting="unsafe")
            np.add(target, converted[: len(block)], out=target)
    return summed


def _compute(query: np.ndarray, key: np.ndarray, head_dim: int, dtype: type[np.floating]) -> Exact:
    rows, width = key.shape
    group = query.shape[0] // rows
    unit = UNIT_FLOAT32 if dtype is np.float32 else UNIT_FLOAT64
    terms = min(_TERMS, max(rows, width)) if dtype is np.float32 else max(rows, width)
    summed: np.ndarray = query if group == 1 else group_sum(query, rows, head_dim, dtype)
    tiled = rows >= width
    as_stored = key.dtype == BFLOAT16 and (not tiled or summed.dtype == BFLOAT16)
    products = bfloat16_products() if as_stored and dtype is np.float32 else None
    if not tiled:
        squared, error = _gram(summed, key, dtype, products, _gamma(terms, unit))
        # A squared norm off by the share x is a norm off by x / 2, and a little more for large x.
        rounding = error / 2 + error * error
    else:
        # Threads of numpy's that wait for more would take the cores from those that multiply.
        with contextlib.nullcontext() if products is None else blas_threads(1):
            squared, norms = _tiles(summed, key, dtype, products)
        rounding = _gamma(terms, unit) * norms
    score = math.sqrt(squared) if squared > 0 else squared
    if group > 1 and score > 0 and np.isfinite(score):
        # What the group sum rounded off, through |dA^T B| <= |dA| |B|: each entry by gamma_(g-1) of the absolute sum.
        lost = _gamma(group - 1, unit) * math.sqrt(group) * _frobenius(query, dtype) * _frobenius(key, dtype)
        rounding += lost / score
    name = "float64" if dtype is np.float64 else f"float32 in sums of {terms}, added up in float64"
    return Exact(score, rounding, f"{name}, with {products.words}" if products else name)


def _gamma(terms: int, unit: float) -> float:
    return terms * unit / (1 - terms * unit)


def _frobenius(array: np.ndarray, dtype: type[np.floating]) -> float:
    total = 0.0
    for start in range(0, len(array), ROWS_AT_A_TIME):
        block = array[start : start + ROWS_AT_A_TIME].astype(dtype).ravel()
        total += float(np.vdot(block, block))
    return math.sqrt(total)


def _gram(
    a: np.ndarray, b: np.ndarray, dtype: type[np.floating], products: Bfloat16Products | None, gamma: float
) -> tuple[float, float]:
    """<a a^T, b b^T>, and the bound on its relative error. ``products`` multiply what is stored in bfloat16.

    An entry of a Gram matrix is off by at most gamma |a_i| |a_j|, so the inner product by gamma times
    |a|^T |b b^T| |a| + |b|^T |a a^T| |b|, where |a| are the norms of the rows. What is too small for the type is lost
    besides: less than the least normal number for each product.
    """
    grams = []
    for array in (a, b):
        total = np.zeros((len(array), len(array)))
        part = np.empty(total.shape, dtype)
        step = _TERMS if dtype is np.float32 else array.shape[1]
        stored = products is not None and array.dtype == BFLOAT16
        for start in range(0, array.shape[1], step):
            block = np.ascontiguousarray(array[:, start : start + step], dtype=BFLOAT16 if stored else dtype)
            multiply = products.multiply if products is not None and stored else np.matmul
            multiply(block, block.T, part)
            total += part
        grams.append(total)
    first, second = grams
    squared = float(np.vdot(first, second))
    norms = [np.sqrt(np.maximum(gram.diagonal(), 0.0)) for gram in grams]
    sizes = np.abs(first), np.abs(second)
    off = float(norms[0] @ sizes[1] @ norms[0] + norms[1] @ sizes[0] @ norms[1])
    lost = float(np.finfo(dtype).tiny) * a.shape[1] * float(sizes[0].sum() + sizes[1].sum())
    # Rounding can leave the inner product of two positive semi-definite matrices a hair below zero.
    squared = max(squared, 0.0) if np.isfinite(squared) else squared
    # The float64 sums of the bound itself are covered by its last digits.
    return squared, 1.001 * (gamma * off + lost) / squared if squared > 0 else 0.0


def _tiles(
    a: np.ndarray, b: np.ndarray, dtype: type[np.floating], products: Bfloat16Products | None
) -> tuple[float, float]:
    """||a^T b||_F^2, and |a|_F |b|_F / ||a^T b||_F: gamma times that bounds the relative error of the norm."""
    squared = squares_a = squares_b = 0.0
    width = a.shape[1]
    multiply = np.matmul if products is None else products.multiply
    stored = dtype if products is None else BFLOAT16
    for right in range(0, width, _TILE):
        b_tile = b[:, right : right + _TILE].astype(stored)
        squares_b += _frobenius(b_tile, dtype) ** 2
        for left in range(0, width, _TILE):
            a_tile = a[:, left : left + _TILE].astype(stored)
            if right == 0:
                squares_a += _frobenius(a_tile, dtype) ** 2
            total = _tile_product(a_tile, b_tile, dtype, multiply)
            squared += float(np.vdot(total, total))
    norms = 1.001 * math.sqrt(squares_a) * math.sqrt(squares_b) / math.sqrt(squared) if squared > 0 else 0.0
    return squared, norms


def _tile_product(a: np.ndarray, b: np.ndarray, dtype: type[np.floating], multiply: Multiply) -> np.ndarray:
    """a^T b in float64, in sums of so many terms as float32 may add up."""
    if dtype is np.float64:
        return np.asarray(a.T @ b)
    total, part = np.zeros((a.shape[1], b.shape[1])), np.empty((a.shape[1], b.shape[1]), np.float32)
    for start in range(0, len(a), _TERMS):
        multiply(a[start : start + _TERMS].T, b[start : start + _TERMS], part)
        total += part
    return total


def _per_head(query: np.ndarray, key: np.ndarray, head_dim: int) -> Exact:
    """sqrt(sum_h <Wq_h Wq_h^T, Wk_h Wk_h^T>) in float64: Gram matrices of one head, whatever the model's width."""
    rows, width = key.shape
    group = query.shape[0] // rows
    squared = off = 0.0
    for head in range(rows // head_dim):
        own = key[head * head_dim : (head + 1) * head_dim].astype(np.float64)
        key_gram = own @ own.T
        query_gram = np.zeros_like(key_gram)
        for member in range(head * group, (head + 1) * group):
            block = query[member * head_dim : (member + 1) * head_dim].astype(np.float64)
            query_gram += block @ block.T
        squared += float(np.vdot(query_gram, key_gram))
        off += 2 * float(np.trace(query_gram)) * float(np.trace(key_gram))
    squared = max(squared, 0.0) if np.isfinite(squared) else squared
    bound = _gamma(width, UNIT_FLOAT64) * off / squared / 2 if squared > 0 else 0.0
    return Exact(math.sqrt(squared) if np.isfinite(squared) else squared, bound, "float64")
