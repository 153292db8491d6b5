"""polygraphy runners that keep their own KV cache, so that a plain list of feeds is a prefill and decode steps.

A feed holds ``input_ids`` [batch, step], ``attention_mask`` [batch, past + step] and ``position_ids`` [batch, step].
One whose mask is as long as its tokens begins a new sequence. The answer is ``logits`` [batch, step, vocabulary] in
float32, zero where the mask hides the position: what a model computes for padding is nobody's business.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy import util
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.datatype import DataType

from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS, DecodeSignature, signature_of
from gatenorm_export.sessions import open_session

Feed = Mapping[str, np.ndarray]


def step_metadata() -> Any:
    """What a runner with a cache of its own takes: tokens, mask and positions; all lengths are dynamic."""
    metadata = TensorMetadata()
    for name in (TOKENS, MASK, POSITIONS):
        metadata.add(name, dtype=DataType.INT64, shape=(-1, -1))
    return metadata


class _CachedRunner(BaseRunner):  # type: ignore[misc]
    """What both runners share: the feed's metadata, and zeros for padding."""

    @util.check_called_by("get_input_metadata")  # type: ignore[untyped-decorator]
    def get_input_metadata_impl(self) -> Any:
        """See :func:`step_metadata`."""
        return step_metadata()

    def _step(self, feed: Feed) -> np.ndarray:
        raise NotImplementedError

    @util.check_called_by("infer")  # type: ignore[untyped-decorator]
    def infer_impl(self, feed_dict: Feed) -> OrderedDict[str, np.ndarray]:
        """Run one feed on the cache that the feeds before it left."""
        start = time.perf_counter()
        logits = self._step(feed_dict).astype(np.float32, copy=False)
        self.inference_time = time.perf_counter() - start
        real = feed_dict[MASK][:, -logits.shape[1] :, None] != 0
        # where, not a product: a NaN computed for padding must not spread.
        return OrderedDict(logits=np.where(real, logits, np.float32(0.0)))


class OnnxDecoder(_CachedRunner):
    """A decoder graph on ONNX Runtime."""

    def __init__(self, graph: Path, name: str) -> None:
        super().__init__(name=name)
        self._graph = graph
        self._inner = OnnxrtRunner(lambda: open_session(graph))
        self._past: list[np.ndarray] = []
        self.signature: DecodeSignature | None = None

    @util.check_called_by("activate")  # type: ignore[untyped-decorator]
    def activate_impl(self) -> None:
        """Open the session."""
        self._inner.activate()
        self.signature = signature_of(self._inner.sess, self._graph)

    @util.check_called_by("deactivate")  # type: ignore[untyped-decorator]
    def deactivate_impl(self) -> None:
        """Close the session and forget the cache."""
        self._inner.deactivate()
        self._past = []

    def _step(self, feed: Feed) -> np.ndarray:
        signature = self.signature
        assert signature is not None
        if feed[MASK].shape[1] == feed[TOKENS].shape[1]:
            self._past = [entry.empty(feed[TOKENS].shape[0]) for entry in signature.past]
        inputs = {name: feed[name] for name in signature.plain}
        inputs |= {entry.name: past for entry, past in zip(signature.past, self._past, strict=True)}
        outputs = self._inner.infer(inputs, check_inputs=False)
        self._past = [outputs[name] for name in signature.present]
        return np.asarray(outputs[signature.logits])


class FrameworkDecoder(_CachedRunner):
    """The framework model in torch; attention branches are zeroed by whoever holds the hooks."""

    def __init__(self, model: Any, name: str = "framework") -> None:
        super().__init__(name=name)
        self._model = model
        self._cache: Any = None

    @util.check_called_by("activate")  # type: ignore[untyped-decorator]
    def activate_impl(self) -> None:
        """The model is loaded already."""

    @util.check_called_by("deactivate")  # type: ignore[untyped-decorator]
    def deactivate_impl(self) -> None:
        """Forget the cache."""
        self._cache = None

    def _step(self, feed: Feed) -> np.ndarray:
        import torch
        from transformers import DynamicCache

        if feed[MASK].shape[1] == feed[TOKENS].shape[1]:
            self._cache = DynamicCache()
        with torch.inference_mode():
            result = self._model(
                input_ids=torch.from_numpy(feed[TOKENS]),
                attention_mask=torch.from_numpy(feed[MASK]),
                position_ids=torch.from_numpy(feed[POSITIONS]),
                past_key_values=self._cache,
                use_cache=True,
            )
        return np.asarray(result.logits.float().numpy())
