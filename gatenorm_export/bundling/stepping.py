"""Run a bundled decoder on ONNX Runtime by what the manifest says of it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.bundling.interface import DTYPES
from gatenorm_export.errors import InputError, needs
from gatenorm_export.records import BundleGraph, CacheTensor, Decoding, TensorSpec

_ORT_DTYPES = {f"tensor({name.lower()})": dtype for name, dtype in DTYPES.items()}


def open_graph(path: Path) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises:
        MissingPartError: ONNX Runtime is not installed.
        InputError: it cannot load the graph.
    """
    with needs("ort", "running a graph"):
        import onnxruntime  # noqa: F401
        import polygraphy  # noqa: F401
    from gatenorm_export.sessions import open_session

    return open_session(path)


def check_session(session: Any, graph: BundleGraph) -> None:
    """Hold what ONNX Runtime sees against the manifest.

    Raises:
        InputError: an input or output has another name, type or length.
    """
    for found, expected in ((session.get_inputs(), graph.inputs), (session.get_outputs(), graph.outputs)):
        names = [entry.name for entry in found]
        if names != [spec.name for spec in expected]:
            raise InputError(f"{graph.file}: has {', '.join(names[:4])}, ...; the manifest says otherwise")
        for entry, spec in zip(found, expected, strict=True):
            if _ORT_DTYPES.get(entry.type) != spec.dtype or not _same_shape(entry.shape, spec):
                raise InputError(
                    f"{graph.file}: {spec.name} is {entry.type} {entry.shape}, the manifest says {spec.dtype} "
                    f"{list(spec.shape)}"
                )


def _same_shape(found: list[Any], spec: TensorSpec) -> bool:
    # ONNX Runtime infers lengths that the file leaves open.
    return len(found) == len(spec.shape) and all(
        isinstance(length, str) or length == shape for shape, length in zip(found, spec.shape, strict=True)
    )


class Stepper:
    """A decoder with its cache. One sequence at a time."""

    def __init__(self, session: Any, decoding: Decoding) -> None:
        self._session, self._decoding = session, decoding
        self._outputs = [decoding.logits_output, *(cache.present for cache in decoding.caches)]
        self._past: list[Any] = []
        self.length = 0

    def begin(self) -> None:
        """Forget the sequence."""
        self._past = [_empty(cache) for cache in self._decoding.caches]
        self.length = 0

    def step(self, tokens: list[int]) -> np.ndarray:
        """Logits [step, vocabulary] in float32 of ``tokens`` behind what was fed before."""
        import onnxruntime

        decoding, end = self._decoding, self.length + len(tokens)
        plain = {decoding.token_input: np.array([tokens], np.int64)}
        if decoding.mask_input is not None:
            plain[decoding.mask_input] = np.ones((1, end), np.int64)
        if decoding.position_input is not None:
            plain[decoding.position_input] = np.arange(self.length, end, dtype=np.int64)[None]
        feed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in plain.items()}
        feed |= {cache.past: past for cache, past in zip(decoding.caches, self._past, strict=True)}
        logits, *self._past = self._session.run_with_ort_values(self._outputs, feed)
        self.length = end
        return np.asarray(logits.numpy()[0], np.float32)


def _empty(cache: CacheTensor) -> Any:
    import onnx_ir as ir
    import onnxruntime

    lengths = [1 if isinstance(length, str) else length for length in cache.shape]
    lengths[cache.batch_axis], lengths[cache.length_axis] = 1, 0
    # By ONNX's number of the type: numpy has no bfloat16.
    number = next(ir.DataType[name].value for name, dtype in DTYPES.items() if dtype == cache.dtype)
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(lengths, number, "cpu")
