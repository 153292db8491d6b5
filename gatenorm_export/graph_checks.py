"""ONNX graphs that nobody vouches for: what is refused before anybody looks into them, and whose fault an error is."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from gatenorm_export.errors import GateNormError, InputError
from gatenorm_export.small_files import open_plain

if TYPE_CHECKING:
    import onnx_ir as ir

P = ParamSpec("P")
R = TypeVar("R")

LARGEST_GRAPH_BYTES = 2**31 - 1
"""protobuf's own limit for a message."""
# A number of a packed field takes one byte or more in the file, and eight or fewer in memory.
_GROWTH = 8
_DEEPEST_CALLS = 100
_MOST_NODES = 2_000_000
"""Nodes of a graph once its functions are inlined; the largest exports have some tens of thousands."""


def check_graph_file(graph: Path) -> int:
    """The size of an ONNX file that can be one.

    Raises:
        InputError: it is no plain file, or larger than any ONNX file.
    """
    handle = open_plain(graph)
    try:
        size = os.fstat(handle).st_size
    finally:
        os.close(handle)
    if size > LARGEST_GRAPH_BYTES:
        raise InputError(f"{graph}: has {size:,} bytes, and no ONNX file has more than {LARGEST_GRAPH_BYTES:,}")
    return size


def check_contents(model: ir.Model, graph: Path, size: int) -> None:
    """Refuse tensors that claim other bytes than the file holds, and functions that call each other without end.

    Raises:
        InputError: there is one; the text names it.
    """
    import onnx_ir as ir

    for tensor in _tensors(model):
        where = f"{graph}: tensor {tensor.name}"
        lengths = tensor.shape.numpy()
        if any(length < 0 for length in lengths):
            raise InputError(f"{where} has the shape {list(lengths)}; export the graph again")
        if tensor.dtype == ir.DataType.UNDEFINED:
            raise InputError(f"{where} has no type; export the graph again")
        if isinstance(tensor, ir.ExternalTensor):
            if (tensor.offset or 0) < 0:
                raise InputError(f"{where} lies at byte {tensor.offset}; export the graph again")
        elif not tensor.dtype.is_string() and tensor.nbytes > _GROWTH * size:
            raise InputError(f"{where} claims {tensor.nbytes:,} bytes in a file of {size:,}; export the graph again")
        elif isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
            held = len(tensor.raw.raw_data)
            if held != tensor.nbytes:
                # The checker refuses too few bytes only.
                raise InputError(f"{where} has {held:,} bytes, its shape {tensor.nbytes:,}; export the graph again")
    _check_calls(model, graph)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    import onnx_ir as ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    holders: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for holder in holders:
        for node in holder.all_nodes():
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
                    yield attribute.value


def _check_calls(model: ir.Model, graph: Path) -> None:
    """Count the nodes that inlining would make: functions that call others twice double them with each level."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size_of(function: ir.Function, depth: int) -> int:
        key = function.identifier()
        if key not in sizes:
            if depth > _DEEPEST_CALLS:
                raise InputError(f"{graph}: its functions call each other more than {_DEEPEST_CALLS} deep")
            # Asked for again before it is known, it calls itself.
            sizes[key] = _MOST_NODES + 1
            sizes[key] = sum(inlined(node, depth) for node in function.all_nodes())
        return sizes[key]

    def inlined(node: ir.Node, depth: int) -> int:
        called = model.functions.get(node.op_identifier())
        return 1 if called is None else size_of(called, depth + 1)

    if model.functions and sum(inlined(node, 0) for node in model.graph.all_nodes()) > _MOST_NODES:
        raise InputError(
            f"{graph}: its functions, put in the place of their calls, would make more than {_MOST_NODES:,} nodes, or "
            "never end; export it again"
        )


@contextlib.contextmanager
def whose_fault(graph: Path) -> Iterator[None]:
    """Work on a graph; what goes wrong is the graph's fault where the ONNX checker refuses it as well.

    Raises:
        InputError: it does; the text has the checker's reason.
    """
    try:
        yield
    except (GateNormError, MemoryError):
        raise
    except Exception as error:
        reason = _refusal(graph)
        if reason is None:
            raise
        raise InputError(f"{graph}: is no valid ONNX graph ({reason}); export it again") from error


def blames_graph(work: Callable[Concatenate[Path, P], R]) -> Callable[Concatenate[Path, P], R]:
    """A function of a graph that does its work in :func:`whose_fault`."""

    @functools.wraps(work)
    def blaming(graph: Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with whose_fault(graph):
            return work(graph, *args, **kwargs)

    return blaming


def _refusal(graph: Path) -> str | None:
    """The checker's first line on a graph; None where it passes."""
    import onnx

    try:
        onnx.checker.check_model(str(graph), full_check=True)
    except Exception as error:
        # Damaged graphs surface as ValidationError, InferenceError, DecodeError and others.
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return None
