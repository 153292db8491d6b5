"""What no configuration tells of a graph, tried on ONNX Runtime: whether its mask hides what lies before a sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.bundling.probe import difference_of, spread_tokens, tolerance_of
from gatenorm_export.deploying.triton.served.manifest import Decoding as ServedDecoding
from gatenorm_export.deploying.triton.served.manifest import read_bundle
from gatenorm_export.deploying.triton.served.runtime import Runtime, Step
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.records import BundleManifest

_PROMPT_TOKENS = 12


class GraphProbe:
    """A bundle's graph, opened once for all that is tried on it.

    Raises:
        InputError: here and in every check, the graph does not run as the bundle's manifest says.
    """

    def __init__(self, folder: Path, manifest: BundleManifest) -> None:
        assert manifest.graph is not None
        assert manifest.decoding is not None
        with needs("triton", "checking the graph"):
            from gatenorm_export.deploying.triton.served.onnx_runtime import OnnxRuntime
        self._folder, self._decoding = folder, read_bundle(folder).decoding
        with _as_the_manifest_says(folder):
            self._runtime: Runtime = OnnxRuntime(folder / manifest.graph.file, self._decoding)
        self._tokens = np.array([spread_tokens(_PROMPT_TOKENS, manifest.decoding.vocab_size)], np.int64)
        self._tolerance = tolerance_of(manifest.graph)

    def check_hidden_position(self) -> None:
        """Make sure that one position of zeros before a sequence changes nothing when the mask hides it.

        Raises:
            RefusedError: it does, as in graphs that count the ones of the mask instead of reading where they are.
        """
        with _as_the_manifest_says(self._folder):
            error = self._difference(_zeros(self._decoding), hidden=1)
        if not error <= self._tolerance:
            raise RefusedError(
                "Triton begins a sequence with one position of cache, and this graph does not hide it behind its mask "
                f"(logits differ by {error:.1e} of their range); use the generating model"
            )

    def check_left_padding(self) -> None:
        """Make sure that prompts may be padded on the left, as those of unlike length in one batch are.

        Raises:
            RefusedError: padding changes what the graph computes.
        """
        with _as_the_manifest_says(self._folder):
            error = self._difference(None, hidden=5)
        if not error <= self._tolerance:
            raise RefusedError(
                "--max-batch above 1 pads prompts on the left, and this graph does not hide padding behind its mask "
                f"(logits differ by {error:.1e} of their range); leave it at 1"
            )

    def _difference(self, cache: Any, hidden: int) -> float:
        """The largest difference that ``hidden`` masked positions before the prompt make, as a share of the logits'
        range. ``cache`` holds them, or they are fed as tokens where it is None."""
        plain = self._logits(self._tokens, np.ones_like(self._tokens), None)
        mask = np.concatenate([np.zeros((1, hidden), np.int64), np.ones_like(self._tokens)], axis=1)
        tokens = self._tokens
        if cache is None:
            tokens = np.concatenate([np.zeros((1, hidden), np.int64), tokens], axis=1)
        behind = self._logits(tokens, mask, cache)
        return difference_of(plain, behind)

    def _logits(self, tokens: np.ndarray, mask: np.ndarray, cache: Any) -> np.ndarray:
        first, cache = self._runtime.step(Step.of(tokens, mask), cache)
        mask = np.concatenate([mask, np.ones((1, 1), np.int64)], axis=1)
        second, _ = self._runtime.step(Step.of(self._tokens[:, :1], mask), cache)
        return np.concatenate([first, second])


@contextlib.contextmanager
def _as_the_manifest_says(folder: Path) -> Iterator[None]:
    """A manifest may name tensors, shapes and types that the graph does not have: who made one could seal it."""
    try:
        yield
    except Exception as error:
        # ONNX Runtime's errors have no base of their own, and numpy refuses shapes by ValueError and MemoryError.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder}: its graph does not run as the manifest says ({reason}); bundle the run again"
        ) from error


def _zeros(decoding: ServedDecoding) -> list[Any]:
    """One position of zeros in every cache, as the server makes it."""
    import onnxruntime

    from gatenorm_export.deploying.triton.served.onnx_runtime import ELEMENT_TYPES

    made = []
    for entry in decoding.caches:
        bits = {"float16": np.uint16, "bfloat16": np.uint16}.get(entry.dtype) or np.dtype(entry.dtype)
        zeros = np.zeros(entry.shape_of(1, 1), bits)
        made.append(onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(zeros, ELEMENT_TYPES[entry.dtype]))
    return made
