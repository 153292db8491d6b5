"""A graph made ready for one flavour of TensorRT: operators lowered, precision converted, and what that cost."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.graph import GraphFile

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int4"]
"""What an engine computes in. fp8 and int4 are those of a graph that is quantised already."""


class LoweredOperator(Part):
    """How many nodes of an operator were written out, and as what."""

    operator: str
    into: str
    count: int


class OutputDifference(Part):
    """How far one output is from the source's: the largest difference, the range of the source's numbers, the ratio.

    The cache tensors are one entry, named ``cache``: the worst of them.
    """

    output: str
    max_abs: float
    range: float
    relative: float


class ConversionCheck(Part):
    """The prepared graph against its source in ONNX Runtime on the CPU, on the same random inputs.

    ``how`` says what ran. This is the error of lowering and precision alone: both graphs have the same layers.
    """

    how: str
    steps: tuple[str, ...]
    outputs: tuple[OutputDifference, ...]

    @property
    def worst(self) -> OutputDifference:
        """The output with the largest relative difference."""
        return max(self.outputs, key=lambda entry: entry.relative)


class PreparedGraph(Record):
    """A graph as it is handed to the builder.

    ``changed`` is false where the source could be taken as it is; then nothing was written. ``wide`` counts the nodes
    that compute in float32 on the way of the data, by operator. ``caches`` are the inputs and outputs that are in the
    precision now; all other inputs and outputs have the source's types. ``check`` is None where ``unmeasured`` says
    why.
    """

    kind: Literal["prepared"] = "prepared"
    graph: str
    files: tuple[GraphFile, ...]
    parent_sha256: str
    parent_path: str
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    precision: Precision
    changed: bool
    lowered: tuple[LoweredOperator, ...] = ()
    wide: dict[str, int] = Field(default_factory=dict)
    caches: tuple[str, ...] = ()
    n_casts: int = 0
    check: ConversionCheck | None = None
    unmeasured: str | None = None

    def place(self, output: Path) -> Path:
        """The ONNX file to build from: in the folder ``output``, or the source where nothing changed."""
        return output / self.graph if self.changed else Path(self.parent_path)
