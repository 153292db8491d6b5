"""The two measures of the paper's experiments, layer by layer, by forward passes of the framework model."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from gatenorm_export.architectures import Modules
from gatenorm_export.correlating.branches import blocks_of, watched
from gatenorm_export.correlating.windows import Windows
from gatenorm_export.errors import RefusedError
from gatenorm_export.kept_work import KeptWork
from gatenorm_export.progress import Progress, Quiet

_KEPT = "sums"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Means over the tokens of a text: ||a|| / ||x||, and 1 - cos(x, x + a)."""

    norm_ratio: float
    cosine: float


def measure_layers(
    model: Any,
    modules: Modules,
    windows: Windows,
    *,
    n_layers: int,
    name: str,
    kept: KeptWork | None = None,
    progress: Progress | None = None,
) -> tuple[Measured, ...]:
    """Run a text through the model and measure what each attention sublayer does to the residual stream.

    x is the stream that enters the block and a what attention adds to it (see :mod:`branches`), both per token; means
    are taken in float64 over every token of the text. A token whose stream is zero has no direction and no ratio and is
    left out. ``name`` is the model's, for messages. The sums are ``kept`` behind every batch; those that are found
    there stand for the first batches.

    Raises:
        RefusedError: the blocks are not where the adapter says, the place where attention joins the stream was not
            found, or the model computes NaN or infinity.
    """
    import torch

    progress = progress or Quiet()
    blocks = blocks_of(model, modules, n_layers, name)
    sums, kept = _Sums(n_layers), kept or KeptWork(None)
    done = sums.found(kept.get(_KEPT), windows.n_batches)
    if done:
        kept.seconds += sums.seconds
        progress.say(f"{done} of {windows.n_batches} batches were measured before; going on")
    with (
        progress.task("measure what attention adds", total=windows.n_batches) as bar,
        torch.no_grad(),
        _without_cache(model),
        watched(blocks, modules.attention, sums.add, name),
    ):
        bar.advance(done)
        for number, (tokens, columns) in enumerate(windows.batches()):
            if number < done:
                continue
            start = time.perf_counter()
            sums.columns = columns
            # Without the head, whose logits nobody reads.
            model.base_model(input_ids=torch.from_numpy(tokens))
            sums.seconds += time.perf_counter() - start
            kept.put(_KEPT, [number + 1, *sums.values()])
            bar.advance()
    return sums.means(name)


class _Sums:
    """Sums over tokens, by layer; ``columns`` of a batch are the text's, the others are special tokens around it."""

    def __init__(self, n_layers: int) -> None:
        self.columns = slice(None)
        self._sums = np.zeros((n_layers, 2))
        self._counts = np.zeros(n_layers, np.int64)
        self.seconds = 0.0

    def values(self) -> list[Any]:
        """Everything in JSON types."""
        return [self.seconds, self._sums.tolist(), self._counts.tolist()]

    def found(self, kept: Any, n_batches: int) -> int:
        """Take over what was kept behind a batch, and how many batches it holds; 0 where it holds none."""
        try:
            done, seconds, sums, counts = kept
            sums, counts = np.array(sums, np.float64), np.array(counts, np.int64)
        except (TypeError, ValueError):
            return 0
        if done not in range(n_batches + 1) or sums.shape != self._sums.shape or counts.shape != self._counts.shape:
            return 0
        self.seconds, self._sums, self._counts = float(seconds), sums, counts
        return int(done)

    def add(self, layer: int, stream: Any, added: Any) -> None:
        """Count one layer's tokens of one batch, in float64."""
        x, a = stream[:, self.columns].double(), added[:, self.columns].double()
        length, total = x.norm(dim=-1), x + a
        known = length > 0
        product, lengths = (x * total).sum(dim=-1)[known], (length * total.norm(dim=-1))[known]
        # Where attention takes the whole stream away the sum has no direction; the token counts as turned by 1.
        turned = 1 - product / lengths.where(lengths > 0, 1)
        self._sums[layer] += float((a.norm(dim=-1)[known] / length[known]).sum()), float(turned.sum())
        self._counts[layer] += int(known.sum())

    def means(self, name: str) -> tuple[Measured, ...]:
        """The means of every layer."""
        for layer, (count, sums) in enumerate(zip(self._counts, self._sums, strict=True)):
            if not count or not np.isfinite(sums).all():
                what = "computes NaN or infinity" if count else "has no stream to measure: it was not run, or is zero"
                raise RefusedError(f"{name}: layer {layer} {what}; nothing can be measured")
        means = self._sums / self._counts[:, None]
        return tuple(Measured(norm_ratio=float(ratio), cosine=float(cosine)) for ratio, cosine in means)


@contextlib.contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    kept = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = kept
