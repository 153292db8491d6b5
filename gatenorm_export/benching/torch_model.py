"""A transformers decoder as it is timed, and what its call has to do."""

from __future__ import annotations

import gc
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gatenorm_export.architectures.adapter import Modules
from gatenorm_export.benching.protocol import Footprint, Point
from gatenorm_export.benching.timers import Timer
from gatenorm_export.records.bench import Work


class TorchModel:
    """A transformers decoder with transformers' own cache."""

    def __init__(self, model: Any, where: str, timer: Timer, notes: tuple[str, ...] = ()) -> None:
        self._model, self._where, self._timer, self.notes = model, where, timer, notes
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._prefill: dict[str, Any] = {}
        self._steps: list[dict[str, Any]] = []
        self._cache: Any = None
        self._length = 0
        self._step = 0

    def refuses(self, point: Point) -> str | None:
        """A transformers decoder runs at any length that its positions reach."""
        return None

    def prepare(self, tokens: np.ndarray, steps: int) -> None:
        """Tokens and positions of the prefill and of each step."""
        self._cache = None
        length = tokens.shape[1]
        self._length = length
        self._prefill = self._feed(tokens, 0)
        self._steps = [self._feed(tokens[:, -1:], length + step) for step in range(steps)]

    def prefill(self) -> None:
        """From an empty cache; without a mask, so that attention may be causal by itself."""
        from transformers import DynamicCache

        self._cache = DynamicCache()
        self._run(self._prefill)
        self._step = 0

    def decode(self) -> None:
        """One token; transformers appends to the cache on the device."""
        self._run(self._steps[self._step])
        self._step += 1

    def rewind(self) -> None:
        """Cut the cache back to the prompt."""
        if self._cache is not None and self._step:
            self._cache.crop(self._length)
        self._step = 0

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds of a call."""
        return self._timer.timed(call)

    def synchronise(self) -> None:
        """Wait for the device."""
        self._timer.synchronise()

    def kv_bytes(self) -> int:
        """Of every layer that has a cache."""
        layers = self._cache.layers if self._cache is not None else []
        held = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.nbytes for tensor in held)

    def close(self) -> None:
        """Free the model, and what torch's allocator keeps of it."""
        import torch

        self._model, self._cache, self._prefill, self._steps = None, None, {}, []
        gc.collect()
        if self._where == "cuda":
            torch.cuda.empty_cache()

    def _run(self, feed: dict[str, Any]) -> None:
        import torch

        with torch.inference_mode():
            self._model(**feed, past_key_values=self._cache, use_cache=True)

    def _feed(self, tokens: np.ndarray, past: int) -> dict[str, Any]:
        import torch

        batch, step = tokens.shape
        positions = torch.arange(past, past + step, device=self._where)
        feed = {
            "input_ids": torch.from_numpy(tokens).to(self._where),
            "position_ids": positions[None].expand(batch, step),
            # Told, because transformers asks the first layer's cache, which is not there when all attention is gone.
            "cache_position": positions,
        }
        return {name: value for name, value in feed.items() if name in self._accepted}


def torch_work(model: Any, modules: Modules, layers: Sequence[int], dtype: str) -> Work:
    """Bytes and operations of a framework model, counted on its modules, which may have no storage.

    Heads and their size are those of the config; torch's fused attention stores no scores and skips what is masked.
    """
    import torch

    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    itemsize = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    blocks = operator.attrgetter(modules.blocks)(model)
    gone = {id(part) for layer in layers for part in operator.attrgetter(modules.attention)(blocks[layer]).modules()}
    elements = sum(
        module.weight.numel()
        for module in model.modules()
        if id(module) not in gone and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
    )
    kept = len(blocks) - len(layers)
    return Work(
        weight_bytes=elements * itemsize,
        flops_per_token=2 * elements,
        n_attention=kept,
        attention_flops_per_pair=4 * heads * size * kept,
        kv_bytes_per_token=2 * kv_heads * size * itemsize * kept,
        kv_passes=3,
        score_bytes_per_pair=0,
        skips_masked=True,
        dtype=dtype,
    )


def torch_footprint(model: Any, itemsize: int) -> Footprint:
    """What a prefill takes for its time, by the config: logits of every token, and a few tensors of the widest kind."""
    config = model.config.get_text_config()
    widest = max(int(getattr(config, "intermediate_size", None) or 0), int(config.hidden_size))
    return Footprint(logits_per_token=int(config.vocab_size) * itemsize, activations_per_token=4 * widest * itemsize)
