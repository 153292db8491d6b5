"""The inputs of a graph as profiles need them: a fixed length, or a formula over named ones, for every dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.graph_checks import check_graph_file

TOKENS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"


@dataclasses.dataclass(frozen=True)
class Length:
    """One dimension of an input: ``fixed``, or the sum of ``names`` and ``constant``.

    ``text`` is how the graph writes it; it is "" where a dimension is dynamic without a name, and ``names`` is then one
    that no other dimension has.
    """

    fixed: int | None
    names: tuple[str, ...] = ()
    constant: int = 0
    text: str = ""

    def value(self, known: Mapping[str, int]) -> int | None:
        """The length, or None where a name is not known."""
        if self.fixed is not None:
            return self.fixed
        if any(name not in known for name in self.names):
            return None
        return self.constant + sum(known[name] for name in self.names)

    @property
    def name(self) -> str | None:
        """The name, where the length is that and nothing else."""
        return self.names[0] if len(self.names) == 1 and not self.constant else None


Inputs = dict[str, tuple[Length, ...]]
"""Input -> its dimensions, in the graph's order."""


def read_inputs(graph: Path) -> Inputs:
    """The inputs of an ONNX file. No weight is read.

    Raises:
        MissingPartError: onnx is not installed.
        InputError: it is no ONNX file.
        RefusedError: an input is no tensor, or its rank is not known.
    """
    with needs("onnx", "reading ONNX"):
        import onnx
    check_graph_file(graph)
    try:
        model = onnx.load(str(graph), load_external_data=False)
    except Exception as error:
        # Damaged protobuf surfaces as many types; what the user can act on is the same.
        raise InputError(f"{graph}: not a readable ONNX file ({type(error).__name__}); export it again") from error
    if not model.graph.node:
        raise InputError(f"{graph}: holds no graph; export it again")
    weights = {tensor.name for tensor in model.graph.initializer}
    found: Inputs = {}
    for entry in model.graph.input:
        if entry.name in weights:
            continue
        if not entry.type.HasField("tensor_type") or not entry.type.tensor_type.HasField("shape"):
            raise RefusedError(
                f"{graph}: input {entry.name} is no tensor of a known rank; no profile can be made of it"
            )
        found[entry.name] = tuple(
            _length(entry.name, axis, dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param)
            for axis, dimension in enumerate(entry.type.tensor_type.shape.dim)
        )
    return found


def _length(entry: str, axis: int, written: int | str) -> Length:
    # Some exporters write 0 or -1 where they know nothing.
    if isinstance(written, int) and written > 0:
        return Length(written)
    text = written if isinstance(written, str) else ""
    if not text:
        return Length(None, (f"{entry}[{axis}]",))
    terms = [term.strip() for term in text.split("+")]
    names = tuple(term for term in terms if not term.isdigit())
    return Length(None, names, sum(int(term) for term in terms if term.isdigit()), text)
