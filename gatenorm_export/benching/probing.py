"""Small products that show what a device can do: one row of numbers times a matrix, and many rows times the same."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from gatenorm_export.records.bench import Probe

if TYPE_CHECKING:
    import onnx

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
"""Bytes of a number, by its type."""
_LEAST, _MOST = {False: 1 << 20, True: 1 << 28}, {False: 1 << 28, True: 1 << 31}
"""Bounds of the probed bytes on CPU and GPU: as large as the model, so that a cache helps both alike, if that fits."""

_WIDE = 4096
_ROWS = {False: 256, True: 4096}
"""Rows at which a product is bound by operations: each byte of a weight is then used that often."""


@dataclasses.dataclass(frozen=True)
class ProbeSizes:
    """``count`` matrices [inner, outer] one after the other, and how many rows make the long product."""

    inner: int
    outer: int
    count: int
    rows: int

    @property
    def elements(self) -> int:
        """Of all matrices together."""
        return self.inner * self.outer * self.count


def probe_sizes(weight_bytes: int, *, gpu: bool) -> ProbeSizes:
    """Square matrices of at most 4096 that together have about the model's bytes, in fp32."""
    n_bytes = min(max(weight_bytes, _LEAST[gpu]), _MOST[gpu])
    side = min(_WIDE, 1 << int(math.log2(math.sqrt(n_bytes / 4))))
    return ProbeSizes(side, side, max(round(n_bytes / (4 * side * side)), 1), _ROWS[gpu])


def product_graph(sizes: ProbeSizes, dtype: str) -> onnx.ModelProto:
    """A graph ``y = x W1 W2 ...`` of random weights; ``x`` is [rows, inner].

    Each weight is scaled so that numbers neither grow nor vanish: denormal ones would be slow on a CPU.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    rng = np.random.default_rng(0)
    weights, nodes, last = [], [], "x"
    for place in range(sizes.count):
        array = rng.standard_normal((sizes.inner, sizes.outer), dtype=np.float32) / np.float32(math.sqrt(sizes.inner))
        weights.append(numpy_helper.from_array(array.astype(dtype), f"w{place}"))
        name = "y" if place == sizes.count - 1 else f"h{place}"
        nodes.append(helper.make_node("MatMul", [last, f"w{place}"], [name]))
        last = name
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", kind, ["rows", sizes.inner])],
        [helper.make_tensor_value_info("y", kind, ["rows", sizes.outer])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def rates(sizes: ProbeSizes, seconds: dict[int, float], dtype: str, how: str) -> Probe:
    """From seconds of a product, by its number of rows, to bytes and operations a second."""
    return Probe(
        bytes_per_s=sizes.elements * ITEMSIZE[dtype] / seconds[1],
        flops_per_s=2 * sizes.elements * sizes.rows / seconds[sizes.rows],
        dtype=dtype,
        how=how,
    )
