"""Where a pruned graph's tensors lie: in data files of the source's that it shares, or packed into one of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.byte_ranges import ByteRange, copy_ranges, data_bytes
from gatenorm_export.errors import OutputError, RefusedError
from gatenorm_export.graphs import external_tensors, moved

if TYPE_CHECKING:
    import onnx_ir as ir

# protobuf refuses messages of 2 GiB; the graph itself needs some of that room.
_INLINE_LIMIT_BYTES = 1_900_000_000
# Of a graph that passes the limit, what is smaller than this may stay inside: shapes and norms are read more often than
# they weigh.
_SPILL_FROM_BYTES = 1024
# ONNX asks for offsets on page boundaries, so that tensors can be memory-mapped: 4 KiB, on Windows 64 KiB. Padding
# small tensors as far would cost more than mapping them gains; a cache line is enough there.
_LARGE_BYTES, _LARGE_ALIGNMENT, _SMALL_ALIGNMENT = 1024 * 1024, 64 * 1024, 64


def share_weights(model: ir.Model, graph: Path, folder: Path) -> tuple[Path, ...]:
    """Point every outside tensor at the file that holds it now, as seen from ``folder``; return those files.

    Only a folder that holds the data, itself or further down, can see it: ONNX Runtime and the ONNX checker refuse
    paths that lead out of a graph's folder and symbolic links that do, and the checker refuses hard links, those of the
    source too. Sharing across folders would make a graph that some loaders take and others do not.

    Raises:
        RefusedError: the source keeps its weights inside, or they cannot be seen from ``folder``.
    """
    there = folder.resolve()
    shared: dict[Path, None] = {}
    for tensor, replace in external_tensors(model):
        data = Path(tensor.path).resolve()
        if not data.is_relative_to(there):
            raise RefusedError(
                f"{folder}: a graph there cannot share {data}: ONNX loaders refuse data outside a graph's folder, and "
                f"links to it; write it into {data.parent} or a folder above, or use --weights compact"
            )
        replace(moved(tensor, there, data.relative_to(there).as_posix(), tensor.offset or 0))
        shared[data] = None
    if not shared:
        raise RefusedError(
            f"{graph}: keeps its weights inside the graph file; there is no data file to share, use --weights compact"
        )
    return tuple(sorted(shared))


def compact_weights(model: ir.Model, data: Path) -> None:
    """Move the tensors that lie outside the graph into one new file, ``data``; write no file where there are none.

    Tensors stay inside the graph when they were inside the source's, unless together they pass protobuf's limit. The
    order is that of the source's files, so that they are read from front to back; a range that several tensors share is
    written once. Bytes go from file to file, never through a tensor.

    Raises:
        OutputError: the disk has no room for the file.
    """
    outside = sorted(external_tensors(model), key=lambda found: (str(found[0].location), found[0].offset or 0))
    places: dict[tuple[Path, int, int], ByteRange] = {}
    end = 0
    for tensor, replace in outside:
        key = Path(tensor.path), tensor.offset or 0, tensor.nbytes
        if key not in places:
            places[key] = ByteRange(*key, _aligned(end, tensor.nbytes))
            end = places[key].end
        replace(moved(tensor, data.parent, data.name, places[key].target))
    spilled = _spilled(model)
    if not outside and not spilled:
        return
    needed = data_bytes(list(places.values())) + sum(tensor.nbytes for tensor, _ in spilled)
    check_room(data.parent, needed)
    copy_ranges(list(places.values()), data)
    with data.open("r+b") as file:
        for value_tensor, value in spilled:
            start = _aligned(end, value_tensor.nbytes)
            file.seek(start)
            file.write(value_tensor.tobytes())
            value.const_value = moved(value_tensor, data.parent, data.name, start)
            end = start + value_tensor.nbytes


def write_checked(model: ir.Model, path: Path, source: Path, *, data_folder: Path) -> None:
    """Write the graph with the tensors that lie inside it, and run the ONNX checker on it; ``source`` is its origin.

    The checker follows data files from the graph's own folder on. So it sees the graph in ``data_folder`` first, under
    a name that nobody asks for, and only a graph that passes goes to ``path``. Some files that every runtime takes fail
    the checker: where the source does, it is not asked.

    Raises:
        RefusedError: the graph fails the checker, or is larger than protobuf can hold.
        OutputError: the disk has no room for it.
    """
    import onnx
    import onnx_ir as ir

    try:
        encoded = ir.serde.serialize_model(model).SerializeToString()
    except ValueError as error:
        raise RefusedError(f"{source}: the pruned graph is too large for one ONNX file ({error})") from error
    check_room(path.parent, len(encoded))
    probe = data_folder / f"{path.parent.name}.{path.name}"
    try:
        probe.write_bytes(encoded)
        try:
            onnx.checker.check_model(str(probe))
        except onnx.checker.ValidationError as error:
            if _passes_checker(source):
                raise RefusedError(
                    f"{source}: the pruned graph fails the ONNX checker ({error}); nothing was written"
                ) from error
        probe.replace(path)
    finally:
        probe.unlink(missing_ok=True)


def _passes_checker(graph: Path) -> bool:
    import onnx

    try:
        onnx.checker.check_model(str(graph))
    except onnx.checker.ValidationError:
        return False
    return True


def check_room(
    folder: Path, needed: int, *, advice: str = "make room, choose another disk, or use --weights share"
) -> None:
    """Ask before writing whether the disk has the room; ``advice`` is what to do where it has not.

    Raises:
        OutputError: it has not; the text has both figures.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder}: needs {needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free; {advice}")


def _aligned(end: int, size: int) -> int:
    alignment = _LARGE_ALIGNMENT if size > _LARGE_BYTES else _SMALL_ALIGNMENT
    return (end + alignment - 1) // alignment * alignment


def _spilled(model: ir.Model) -> list[tuple[ir.TensorProtocol, ir.Value]]:
    """The tensors to move out of a graph that would be too large for protobuf."""
    import onnx_ir as ir

    inside = [
        (value.const_value, value)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor)
    ]
    if sum(tensor.nbytes for tensor, _ in inside if not tensor.dtype.is_string()) <= _INLINE_LIMIT_BYTES:
        return []
    return [
        (tensor, value)
        for tensor, value in inside
        if not tensor.dtype.is_string() and tensor.nbytes >= _SPILL_FROM_BYTES
    ]
