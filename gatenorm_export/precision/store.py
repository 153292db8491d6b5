"""Write a changed graph with its weights in one data file: copied, rounded or unpacked, one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gatenorm_export.byte_ranges import ByteRange, copy_ranges
from gatenorm_export.errors import OutputError, RefusedError
from gatenorm_export.graph_storage import check_room
from gatenorm_export.progress import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

# Shapes, scales and norms stay in the graph's file.
_OUTSIDE_FROM_BYTES = 1024
# ONNX asks for offsets on page boundaries where a tensor is to be memory-mapped.
_LARGE_BYTES, _LARGE_ALIGNMENT, _SMALL_ALIGNMENT = 1024 * 1024, 64 * 1024, 64
# This many numbers pass through memory at a time when they are rounded.
_PIECE = 8 * 1024 * 1024


def store_graph(
    model: ir.Model,
    graph: Path,
    source: Path,
    *,
    stored: Collection[ir.Value],
    to: ir.DataType | None,
    progress: Progress,
) -> None:
    """Write ``model`` to ``graph`` and its larger weights to ``graph`` + ``.data``; round ``stored`` to ``to``.

    Tensors of the source's data files go from file to file. What is rounded is read in pieces, so no tensor of the
    source is ever in memory as a whole.

    Raises:
        OutputError: the disk is too small.
        RefusedError: the result fails the ONNX checker, which the source passes.
    """
    import onnx_ir as ir

    data = graph.with_name(f"{graph.name}.data")
    rounding = set(stored)
    places: list[tuple[ir.Value, ir.TensorProtocol, ir.ExternalTensor]] = []
    end = 0
    for inner in model.graphs():
        for value in inner.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype.is_string():
                continue
            dtype = to if to is not None and value in rounding else tensor.dtype
            size = -(-tensor.size * dtype.bitwidth // 8)
            if size < _OUTSIDE_FROM_BYTES and not isinstance(tensor, ir.ExternalTensor):
                if value in rounding and to is not None:
                    value.const_value = _rounded(tensor, to)
                elif isinstance(tensor, ir.LazyTensor):
                    value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
                continue
            alignment = _LARGE_ALIGNMENT if size > _LARGE_BYTES else _SMALL_ALIGNMENT
            start = -(-end // alignment) * alignment
            end = start + size
            shape = ir.Shape(tensor.shape.numpy())
            place = ir.ExternalTensor(
                data.name, start, size, dtype, shape=shape, name=value.name or "", base_dir=graph.parent
            )
            places.append((value, tensor, place))
    check_room(graph.parent, end)
    if places:
        _fill(places, data, end, progress)
    for value, _, place in places:
        value.const_value = place
        value.dtype = place.dtype
    for value in rounding:
        if to is not None:
            value.dtype = to
    _write(model, graph, source)


def _fill(
    places: list[tuple[ir.Value, ir.TensorProtocol, ir.ExternalTensor]], data: Path, end: int, progress: Progress
) -> None:
    import onnx_ir as ir

    ranges = [
        ByteRange(Path(tensor.path), tensor.offset or 0, tensor.nbytes, place.offset or 0)
        for _, tensor, place in places
        if isinstance(tensor, ir.ExternalTensor) and tensor.dtype == place.dtype
    ]
    copy_ranges(ranges, data)
    with data.open("r+b") as file, progress.task("convert the weights", len(places)) as bar:
        file.truncate(end)
        for _, tensor, place in places:
            bar.advance()
            if isinstance(tensor, ir.ExternalTensor) and tensor.dtype == place.dtype:
                continue
            file.seek(place.offset or 0)
            if tensor.dtype == place.dtype:
                file.write(tensor.tobytes())
            else:
                _write_rounded(file, tensor, place.dtype)
            if isinstance(tensor, ir.ExternalTensor):
                # Otherwise the mapped pages count as this process's until the end.
                tensor.release()


def _write_rounded(file: BinaryIO, tensor: ir.TensorProtocol, to: ir.DataType) -> None:
    flat = tensor.numpy().reshape(-1)
    for start in range(0, flat.size, _PIECE):
        file.write(_rounded_array(flat[start : start + _PIECE], to).tobytes())


def _rounded(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    import onnx_ir as ir

    return ir.tensor(_rounded_array(tensor.numpy(), to), dtype=to, name=tensor.name)


def _rounded_array(array: Any, to: ir.DataType) -> Any:
    """float32 numbers in another type; what is finite stays finite."""
    import ml_dtypes
    import numpy as np

    values = np.asarray(array)
    finfo: Any = ml_dtypes.finfo
    limits = finfo(to.numpy())
    clipped = np.clip(values, float(limits.min), float(limits.max))
    return np.where(np.isfinite(values), clipped, values).astype(to.numpy())


def _write(model: ir.Model, graph: Path, source: Path) -> None:
    import onnx
    import onnx_ir as ir

    try:
        encoded = ir.serde.serialize_model(model).SerializeToString()
    except ValueError as error:
        raise RefusedError(f"{source}: the prepared graph is too large for one ONNX file ({error})") from error
    check_room(graph.parent, len(encoded))
    try:
        graph.write_bytes(encoded)
    except OSError as error:
        raise OutputError(f"{graph}: cannot be written ({error.strerror}); choose another output") from error
    try:
        onnx.checker.check_model(str(graph))
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        if _passes(source):
            raise RefusedError(f"{source}: the prepared graph fails the ONNX checker ({first})") from error


def _passes(graph: Path) -> bool:
    import onnx

    try:
        onnx.checker.check_model(str(graph))
    except onnx.checker.ValidationError:
        return False
    return True
