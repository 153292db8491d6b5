"""The two measures of the paper's experiments, layer by layer, by forward passes of the framework model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from gatenorm_export.architectures import Modules
from gatenorm_export.correlating.branches import blocks_of, watched
from gatenorm_export.correlating.windows import Windows
from gatenorm_export.errors import RefusedError
from gatenorm_export.progress import Progress, Quiet


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
    progress: Progress | None = None,
) -> tuple[Measured, ...]:
    """Run a text through the model and measure what each attention sublayer does to the residual stream.

    x is the stream that enters the block and a what attention adds to it (see :mod:`branches`), both per token; means
    are taken in float64 over every token of the text. A token whose stream is zero has no direction and no ratio and is
    left out. ``name`` is the model's, for messages.

    Raises:
        RefusedError: the blocks are not where the adapter says, the place where attention joins the stream was not
            found, or the model computes NaN or infinity.
    """
    import torch

    progress = progress or Quiet()
    blocks = blocks_of(model, modules, n_layers, name)
    sums = _Sums(n_layers)
    with (
        progress.task("measure what attention adds", total=windows.n_batches) as bar,
        torch.no_grad(),
        _without_cache(model),
        watched(blocks, modules.attention, sums.add, name),
    ):
        for tokens, columns in windows.batches():
            sums.columns = columns
            # Without the head, whose logits nobody reads.
            model.base_model(input_ids=torch.from_numpy(tokens))
            bar.advance()
    return sums.means(name)


class _Sums:
    """Sums over tokens, by layer; ``columns`` of a batch are the text's, the others are special tokens around it."""

    def __init__(self, n_layers: int) -> None:
        self.columns = slice(None)
        self._sums = np.zeros((n_layers, 2))
        self._counts = np.zeros(n_layers, np.int64)

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
