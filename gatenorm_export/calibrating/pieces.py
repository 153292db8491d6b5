"""One piece of a graph as an ONNX Runtime session."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from gatenorm_export.decode_signature import DTYPES, TOKENS
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graphs import external_tensors
from gatenorm_export.sessions import cpu_options

if TYPE_CHECKING:
    import onnx_ir as ir

# protobuf refuses messages of 2 GiB, so a larger piece goes through a file.
_IN_MEMORY_BYTES = 1_500_000_000


class Piece:
    """One session; the first inputs are streams, then come streams of which only the length is read, then the rest."""

    def __init__(
        self, model: ir.Model, n_streams: int, measured: Sequence[int | None], order: list[int], graph: Path
    ) -> None:
        import onnx_ir as ir

        n_given = n_streams + len(measured)
        for value in (*model.graph.inputs[:n_given], *model.graph.outputs):
            value.dtype = value.dtype or ir.DataType.FLOAT
        self._graph = graph
        self._session = _open(model, graph)
        self._order = order
        entries = self._session.get_inputs()
        ranks = [*(len(entry.shape) for entry in entries[:n_streams]), *measured]
        self._streams = [
            (entry.name, DTYPES.get(entry.type, np.float32), rank == 2)
            for entry, rank in zip(entries[:n_given], ranks, strict=True)
        ]
        self._measured = tuple(measured)
        self._fed = [entry.name for entry in entries[n_given:]]

    def __call__(self, arrays: Sequence[np.ndarray], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run it on streams, and on whatever else of ``feed`` it reads; results are [windows, tokens, size], float32.

        Raises:
            RefusedError: ONNX Runtime fails; the text has its first line.
        """
        inputs = {name: feed[name] for name in self._fed}
        given = [*arrays, *(arrays[0] for _ in self._measured)]
        for (name, dtype, flat), array in zip(self._streams, given, strict=True):
            # Some graphs keep the stream as [windows * tokens, d_model] on parts of its way.
            rows = array.reshape(-1, array.shape[-1]) if flat else array
            inputs[name] = np.ascontiguousarray(rows, dtype)
        try:
            results = [np.asarray(result, np.float32) for result in self._session.run(None, inputs)]
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RefusedError(f"{self._graph}: ONNX Runtime cannot run a layer of it by itself ({first})") from error
        shape = feed[TOKENS].shape
        return [results[index].reshape(*shape, -1) for index in self._order]


@functools.cache
def _keep_freed_memory() -> None:
    """Make glibc keep what is freed; by default it returns every large array, and the kernel clears each new one.

    Logits are 50 MB a window on SmolLM2; so a guarded search spends a sixth of its time in page faults.
    """
    # From malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX. Elsewhere than on Linux this is left as it is.
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for parameter, value in ((-1, 2**31 - 1), (-2, 2**26), (-4, 0)):
            mallopt(parameter, value)


def _open(model: ir.Model, graph: Path) -> Any:
    import onnx_ir as ir
    import onnxruntime

    _keep_freed_memory()
    options = cpu_options()
    # Each session would keep its largest activations for itself: 14 GB over the sixty of SmolLM2.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Pieces run in turn with each other and with numpy; threads that spin in between take the cores from the next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    try:
        if size < _IN_MEMORY_BYTES:
            for tensor, replace in external_tensors(model):
                replace(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name))
            encoded = ir.to_proto(model).SerializeToString()
            return onnxruntime.InferenceSession(encoded, options, providers=["CPUExecutionProvider"])
        with TemporaryDirectory(prefix="gatenorm.") as folder:
            path = Path(folder) / "piece.onnx"
            ir.save(model, path, external_data="piece.data")
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{graph}: ONNX Runtime cannot run a layer of it by itself ({first})") from error
