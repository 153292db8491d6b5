"""A polygraphy runner that makes any other one a decoder: it keeps the cache, and answers with every output.

Where :class:`~gatenorm_export.comparing.runners.OnnxDecoder` gives logits alone, this one gives every present tensor
too, all in float32, zero where the mask hides a position: what a model computes for padding is nobody's business.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from polygraphy import util
from polygraphy.backend.base import BaseRunner
from polygraphy.datatype import DataType

from gatenorm_export.comparing.runners import step_metadata
from gatenorm_export.decode_signature import MASK, TOKENS, CacheInput, DecodeSignature
from gatenorm_export.errors import RefusedError
from gatenorm_export.records import Profile

Feed = Mapping[str, np.ndarray]


class StepRunner(BaseRunner):  # type: ignore[misc]
    """``inner`` as a decoder with the inputs and outputs of ``signature``.

    A feed is what :mod:`~gatenorm_export.comparing.feeds` makes. ``profiles`` are an engine's: at each step the first
    one that takes the shapes is set, decode before prefill. ``missing`` are outputs that ``inner`` does not have; in
    their place stands a single NaN.
    """

    def __init__(
        self, inner: Any, signature: DecodeSignature, name: str, *, profiles: tuple[Profile, ...] = ()
    ) -> None:
        super().__init__(name=name)
        self._inner, self._signature, self._profiles = inner, signature, profiles
        self._past: dict[str, Any] = {}
        self._dtypes: dict[str, Any] = {}
        self.missing: tuple[str, ...] = ()
        self.unknown: tuple[str, ...] = ()

    @util.check_called_by("get_input_metadata")  # type: ignore[untyped-decorator]
    def get_input_metadata_impl(self) -> Any:
        """See :func:`step_metadata`."""
        return step_metadata()

    @util.check_called_by("activate")  # type: ignore[untyped-decorator]
    def activate_impl(self) -> None:
        """Activate the inner runner, and learn what it takes."""
        self._inner.activate()
        metadata = self._inner.get_input_metadata(use_numpy_dtypes=False)
        self._dtypes = {name: entry.dtype for name, entry in metadata.items()}
        known = {*self._signature.plain, *(entry.name for entry in self._signature.past)}
        self.unknown = tuple(name for name in self._dtypes if name not in known)

    @util.check_called_by("deactivate")  # type: ignore[untyped-decorator]
    def deactivate_impl(self) -> None:
        """Deactivate the inner runner and forget the cache."""
        self._inner.deactivate()
        self._past = {}

    @util.check_called_by("infer")  # type: ignore[untyped-decorator]
    def infer_impl(self, feed_dict: Feed) -> OrderedDict[str, np.ndarray]:
        """Run one feed on the cache that the feeds before it left."""
        signature, wanted = self._signature, self._dtypes
        if self.unknown:
            raise RefusedError(f"it takes {', '.join(self.unknown)}, which its graph does not have")
        if feed_dict[MASK].shape[1] == feed_dict[TOKENS].shape[1]:
            batch = feed_dict[TOKENS].shape[0]
            self._past = {entry.name: self._empty(entry, batch) for entry in signature.past if entry.name in wanted}
        inputs = {name: self._cast(feed_dict[name], name) for name in signature.plain if name in wanted} | self._past
        self._choose_profile({name: tuple(array.shape) for name, array in inputs.items()})
        start = time.perf_counter()
        outputs = self._inner.infer(inputs, check_inputs=False)
        self.inference_time = time.perf_counter() - start
        self.missing = tuple(name for name in (signature.logits, *signature.present) if name not in outputs)
        # Runners may use the same buffers for the next call.
        self._past = {
            entry.name: _copy(outputs[present])
            for entry, present in zip(signature.past, signature.present, strict=True)
            if entry.name in wanted and present in outputs
        }
        found: OrderedDict[str, np.ndarray] = OrderedDict()
        for name in (signature.logits, *signature.present):
            array = _float32(outputs[name]) if name in outputs else np.full((), np.nan, np.float32)
            # where, not a product: a NaN computed for padding must not spread.
            found[name] = np.where(visible(signature, name, feed_dict, array.shape), array, np.float32(0.0))
        return found

    def _empty(self, entry: CacheInput, batch: int) -> Any:
        return self._cast(entry.empty(batch), entry.name)

    def _cast(self, array: np.ndarray, name: str) -> Any:
        """``array`` in the type that the inner runner takes; torch's, where numpy has none for one of them."""
        dtype = self._dtypes[name]
        if all(found != DataType.BFLOAT16 for found in self._dtypes.values()):
            return np.ascontiguousarray(array.astype(DataType.to_dtype(dtype, "numpy")))
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(DataType.to_dtype(dtype, "torch"))

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if not self._profiles:
            return
        order = sorted(range(len(self._profiles)), key=lambda index: self._profiles[index].name != "decode")
        for index in order:
            if takes(self._profiles[index], shapes):
                self._inner.set_profile(index)
                return
        raise RefusedError(f"no profile of it takes {TOKENS} of {list(shapes[TOKENS])} in this step")


def takes(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a profile's bounds admit ``shapes``."""
    for bound in profile.bounds:
        shape = shapes.get(bound.input)
        if shape is None:
            continue
        if len(shape) != len(bound.min) or not all(
            low <= length <= high for low, length, high in zip(bound.min, shape, bound.max, strict=True)
        ):
            return False
    return True


def visible(signature: DecodeSignature, name: str, feed: Feed, shape: tuple[int, ...]) -> np.ndarray:
    """Which elements of an output belong to positions that the mask shows; of a shape that broadcasts to ``shape``."""
    mask: np.ndarray = feed[MASK] != 0
    everything = np.ones((1,) * len(shape), np.bool_)
    if MASK not in signature.plain:
        return everything
    if name == signature.logits:
        rows, places = 0, 1
        mask = mask[:, -shape[1] :] if len(shape) > 1 else mask
    else:
        entry = signature.past[signature.present.index(name)]
        opened = [axis for axis, length in enumerate(entry.shape) if length is None]
        if len(opened) < 2:
            return everything
        rows, places = opened[0], opened[-1]
    if max(rows, places) >= len(shape) or (shape[rows], shape[places]) != mask.shape:
        return everything
    wide = [1] * len(shape)
    wide[rows], wide[places] = mask.shape
    return np.asarray(mask.reshape(wide))


def _float32(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        return np.array(array.detach().float().cpu().numpy(), np.float32)
    return np.array(array, np.float32)


def _copy(array: Any) -> Any:
    return array.clone() if hasattr(array, "clone") else np.array(array)
