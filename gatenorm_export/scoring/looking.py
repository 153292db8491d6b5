"""One look at one layer: a sketch as sharp as its turn, or the exact formula."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatenorm_export.scoring.devices import Device, device_score
from gatenorm_export.scoring.gate_norm import (
    Variant,
    check_shapes,
    exact_flops,
    exact_score,
    group_sum,
    in_float32_range,
    is_large,
)
from gatenorm_export.scoring.pairing import StreamedLayer
from gatenorm_export.scoring.signs import SIGNS_PER_ROW
from gatenorm_export.scoring.sketch import Layer, Sketch, estimate, sketched


class NotFinite(ValueError):
    """A layer's weights hold NaN or infinity, or their product leaves float64."""

    def __init__(self, layer: int) -> None:
        super().__init__(f"the score of layer {layer} is not finite")
        self.layer = layer


@dataclass(frozen=True)
class Step:
    """One way to score a layer. A sketch has ``columns`` of its own beside those before, or only those before, and
    ``rank`` directions make them sharper; without either a score is exact."""

    name: str
    columns: int = 0
    rank: int = 0
    float64: bool = False

    @property
    def exact(self) -> bool:
        """Whether nothing is drawn. Then one layer at a time is as fast as two and takes less memory: large products
        use all cores."""
        return not self.columns and not self.rank

    def columns_for(self, query_rows: int, rows: int, width: int, *, fast: bool) -> int:
        """Columns of a sketch of a layer of that shape. The product of both projections costs their square: beyond a
        certain share of what projecting costs it takes longer than narrower intervals save, less so where directions
        are taken too, and where bfloat16 units make products ``fast``."""
        share = (80 if self.rank else 13) * (5 if fast else 1)
        return min(self.columns, math.isqrt(share * query_rows * width // rows))

    def flops(self, rows: int, width: int) -> float:
        """Operations of a sketch of a layer whose key weights are [rows, width]."""
        signs = 2 * SIGNS_PER_ROW if self.columns else 0
        return 2.0 * rows * (width * (signs + 7 * self.rank) + self.columns**2)


EXACT = (Step("exact"), Step("exact in float64", float64=True))
# A layer skips the sketches that would cost it half of being exact.
SKETCHES = (
    Step("sketch", columns=512),
    Step("refined sketch", rank=32),
    Step("finest sketch", columns=512, rank=96),
)


@dataclass(frozen=True)
class Found:
    """What is known of a layer. An exact score's interval is its rounding; ``final`` is as sharp as it gets.

    ``step`` counts the ways to score, ``name`` says which one that was, ``arithmetic`` what multiplied.
    """

    score: float
    low: float
    high: float
    step: int
    name: str
    arithmetic: str
    exact: bool = False
    final: bool = False
    sketches: tuple[Sketch, ...] = ()

    def sharpened(self, after: Found) -> Found:
        """What both know: both intervals hold the score, so what they share does."""
        if after.exact:
            return after
        low, high = max(self.low, after.low), min(self.high, after.high)
        return replace(after, low=low, high=high, score=min(max(after.score, low), high))


@dataclass(frozen=True)
class Looker:
    """How the layers of a stack are looked at: ``steps`` one after the other, each in more detail."""

    steps: Sequence[Step]
    head_dim: int
    variant: Variant
    seed: int
    device: Device | None

    # What overflows is noticed by its score.
    @np.errstate(over="ignore", invalid="ignore", under="ignore")
    def look(self, one: StreamedLayer, before: Found | None, reading: threading.Lock) -> Found:
        """Take the first step beyond ``before`` that makes sense for the layer; ``reading`` is held while it is read.

        Raises:
            NotFinite: its exact score is not finite.
            ValueError: its shapes do not fit.
        """
        start, sketches = (before.step + 1, before.sketches) if before else (0, ())
        with reading:
            query, key = one.load()
        # Beside the reading of others. Then a product finds in the caches what of the weights fits there.
        one.take_digest()
        check_shapes(query, key, self.head_dim)
        while not self.steps[start].exact:
            if self._takes(query, key, start, sketches):
                if self.steps[start].rank and len(query) > len(key):
                    # Several products follow: one pass over all heads serves them, and their memory is free for others.
                    query = group_sum(query, len(key), self.head_dim, np.float32)
                guess = self._sketched((query, key), start, sketches)
                if guess is not None:
                    return guess
                with reading:
                    query, key = one.load()
            start += 1
        return self._exact(one.layer, (query, key), start)

    def _takes(self, query: np.ndarray, key: np.ndarray, number: int, before: Sequence[Sketch]) -> bool:
        """Whether a sketch step is worth its time: not where the layer is small for it, or no sketch is there to make
        sharper."""
        step, (rows, width) = self.steps[number], key.shape
        if not is_large(query, key) or step.flops(rows, width) * 2 > exact_flops(rows, width):
            return False
        return step.columns > 0 or len(before) > 0

    def _sketched(
        self, weights: tuple[np.ndarray, np.ndarray], number: int, sketches: tuple[Sketch, ...]
    ) -> Found | None:
        """Take a sketch step; None where figures leave the range of float32."""
        query, key = weights
        step, (rows, width) = self.steps[number], key.shape
        factors = Layer.of(query, key, self.head_dim)
        if step.columns:
            columns = step.columns_for(len(query), rows, width, fast=bool(factors.b.arithmetic))
            sketches = (*sketches, sketched(factors, columns=columns, seed=(self.seed, number)))
        guess = estimate(factors, sketches, rank=step.rank)
        if not in_float32_range(guess.score, width):
            return None
        arithmetic = f"float32 sketches{factors.b.arithmetic and f' with {factors.b.arithmetic}'}"
        return Found(guess.score, guess.low, guess.high, number, step.name, arithmetic, sketches=sketches)

    def _exact(self, layer: int, weights: tuple[np.ndarray, np.ndarray], number: int) -> Found:
        query, key = weights
        check_shapes(query, key, self.head_dim)
        float64 = self.steps[number].float64
        if self.device is not None and not float64:
            one = device_score(self.device, query, key, head_dim=self.head_dim, variant=self.variant)
        else:
            one = exact_score(query, key, head_dim=self.head_dim, variant=self.variant, float64=float64)
        if not math.isfinite(one.score):
            raise NotFinite(layer)
        low, high = one.score * (1 - one.rounding), one.score * (1 + one.rounding)
        final = one.arithmetic == "float64"
        return Found(one.score, low, high, number, one.arithmetic, one.arithmetic, exact=True, final=final)
