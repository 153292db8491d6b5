"""Products of bfloat16 matrices by the units that a CPU has for them (AMX, AVX-512 BF16), through oneDNN's C interface.

A product of two bfloat16 numbers has 16 bits and is exact in float32; sums are float32, in an order of the library's
own. So errors are those of a float32 product of the same matrices, and no weight is converted first. The library is
that of the package ``onednn-cpu-gomp`` (extra ``fast``), found by the package's own list of files.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

Multiply = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
"""left, right, out: as ``np.matmul``."""

_PACKAGE, _FILE = "onednn-cpu-gomp", "libdnnl.so.3"
# dnnl_types.h and dnnl_common_types.h of oneDNN 3: an interface that stays the same through all versions 3.
_MAJOR = 3
_CPU = 1
_IN_ORDER = 1
_TYPES = {BFLOAT16: 2, np.dtype(np.float32): 3}
_SOURCE, _WEIGHTS, _TARGET, _SCRATCHPAD, _SOURCES = 1, 33, 17, 80, 1024
_QUERY_SCRATCHPAD = 136
_SCRATCHPAD_OF_USER = 1
_LARGEST_RANK = 12
# Of more, the library makes a sum element by element, a hundred times slower.
_SUMMANDS = 8
# Instruction sets are bits, each on top of those before it.
_ISA_BFLOAT16, _ISA_AMX = 0xE7, 0x200

_Handle = ctypes.c_void_p
_Dimensions = ctypes.c_int64 * _LARGEST_RANK


class _Argument(ctypes.Structure):
    _fields_ = (("index", ctypes.c_int), ("memory", _Handle))


class _Version(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("patch", ctypes.c_int),
    )


# What was made ready, and how many threads it may take, thread by thread.
_here = threading.local()


def limit_threads(count: int) -> None:
    """How many threads the products of the calling thread take, which has made none so far."""
    _here.threads = count


@functools.cache
def bfloat16_products() -> Bfloat16Products | None:
    """The products of this machine; None where the package, or such a unit of the CPU, is not there."""
    file = _library_file()
    if file is None:
        return None
    try:
        library = ctypes.CDLL(str(file))
    except OSError:
        # Built for another machine, or GNU's OpenMP is not there.
        return None
    library.dnnl_version.restype = ctypes.POINTER(_Version)
    if library.dnnl_version().contents.major != _MAJOR:
        return None
    isa = int(library.dnnl_get_effective_cpu_isa())
    return Bfloat16Products(library, isa) if isa & _ISA_BFLOAT16 == _ISA_BFLOAT16 else None


def _library_file() -> Path | None:
    """The library as its package lists it: that very file, of that size, where packages are installed."""
    try:
        files = importlib.metadata.files(_PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    listed = next((file for file in files if file.name == _FILE), None)
    if listed is None:
        return None
    file = Path(str(listed.locate()))
    file = file.parent.resolve() / file.name
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    roots = [Path(sysconfig.get_path("data", scheme)).resolve() for scheme in schemes]
    own = not file.is_symlink() and file.is_file() and any(file.is_relative_to(root) for root in roots)
    return file if own and file.stat().st_size == listed.size else None


class Bfloat16Products:
    """Matrix products through one loaded library; any number of threads may use it at once."""

    def __init__(self, library: Any, isa: int) -> None:
        self.library = library
        version = library.dnnl_version().contents
        unit = "AMX" if isa & _ISA_AMX else "AVX-512"
        self.words = f"bfloat16 products by oneDNN {version.major}.{version.minor}.{version.patch} ({unit})"
        """What multiplies, for records."""
        library.dnnl_primitive_desc_query_md.restype = _Handle
        library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        # What is done in no time keeps Python's lock: to get it back may take a thread longer than the call.
        self.set_data = ctypes.PyDLL(library._name).dnnl_memory_set_data_handle
        self.set_data.argtypes = [_Handle, _Handle]
        self.engine, self.stream = _Handle(), _Handle()
        self.call("engine_create", ctypes.byref(self.engine), _CPU, ctypes.c_size_t(0))
        self.call("stream_create", ctypes.byref(self.stream), self.engine, _IN_ORDER)

    def multiply(self, left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        """``left`` [..., m, k] times ``right`` [..., k, n], both bfloat16, into ``out`` [..., m, n], either type.

        Like ``np.matmul``, with as many dimensions on either side; strides may be any.
        """
        self._run(_Product, (left, right), out)

    def add(self, parts: np.ndarray, out: np.ndarray) -> None:
        """The sum of bfloat16 matrices, [n, rows, width] without gaps, in float32, into ``out`` of either type."""
        if len(parts) <= _SUMMANDS:
            self._run(_Sum, tuple(parts), out)
            return
        total, more = np.zeros(out.shape, np.float32), np.empty(out.shape, np.float32)
        for start in range(0, len(parts), _SUMMANDS):
            self._run(_Sum, tuple(parts[start : start + _SUMMANDS]), more)
            total += more
        out[...] = total

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library that returns a status."""
        status = getattr(self.library, f"dnnl_{name}")(*arguments)
        if status:
            raise RuntimeError(f"oneDNN: {name} failed with status {status}")

    def _run(self, kind: type[_Primitive], sources: tuple[np.ndarray, ...], out: np.ndarray) -> None:
        here = _here.__dict__
        if "primitives" not in here:
            here["primitives"] = {}
            if "threads" in here:
                # Of the library's own OpenMP: symbols of what it depends on are found through it.
                self.library.omp_set_num_threads(here["threads"])
        shape = (kind, *((array.dtype, array.shape, array.strides) for array in (*sources, out)))
        if shape not in here["primitives"]:
            here["primitives"][shape] = kind(self, sources, out)
        here["primitives"][shape].run(sources, out)


class _Primitive:
    """An operation on arrays of certain shapes, made ready for one thread."""

    def __init__(self, owner: Bfloat16Products, sources: tuple[np.ndarray, ...], out: np.ndarray) -> None:
        library = owner.library
        self._owner = owner
        self._made: list[tuple[str, _Handle]] = []
        layouts = [self._layout(array) for array in (*sources, out)]
        options = self._new("primitive_attr", "primitive_attr_create")
        owner.call("primitive_attr_set_scratchpad_mode", options, _SCRATCHPAD_OF_USER)
        described = self._described(layouts[:-1], layouts[-1], options)
        self._primitive = self._new("primitive", "primitive_create", described)
        layouts.append(_Handle(library.dnnl_primitive_desc_query_md(described, _QUERY_SCRATCHPAD, 0)))
        # Memory of one's own: what the library keeps for a thread must be given back by that thread.
        self._scratch = np.empty(max(1, library.dnnl_memory_desc_get_size(layouts[-1])), np.uint8)
        self._memories = [self._new("memory", "memory_create", layout, owner.engine, None) for layout in layouts]
        pairs = zip((*self._indices(len(sources)), _TARGET, _SCRATCHPAD), self._memories, strict=True)
        self._arguments = (_Argument * len(layouts))(*(_Argument(index, memory) for index, memory in pairs))

    def run(self, sources: tuple[np.ndarray, ...], out: np.ndarray) -> None:
        """The operation on arrays of these shapes."""
        owner = self._owner
        for memory, array in zip(self._memories, (*sources, out, self._scratch), strict=True):
            owner.set_data(memory, array.ctypes.data)
        # On a CPU whose threads are OpenMP's this returns when it is done.
        owner.call("primitive_execute", self._primitive, owner.stream, len(self._arguments), self._arguments)

    def _described(self, sources: list[_Handle], out: _Handle, options: _Handle) -> _Handle:
        raise NotImplementedError

    def _indices(self, count: int) -> tuple[int, ...]:
        raise NotImplementedError

    def _layout(self, array: np.ndarray) -> _Handle:
        strides = (stride // array.itemsize for stride in array.strides)
        shape = (array.ndim, _Dimensions(*array.shape), _TYPES[array.dtype], _Dimensions(*strides))
        return self._new("memory_desc", "memory_desc_create_with_strides", *shape)

    def _new(self, kind: str, maker: str, *arguments: Any) -> _Handle:
        made = _Handle()
        self._owner.call(maker, ctypes.byref(made), *arguments)
        self._made.append((kind, made))
        return made

    def __del__(self) -> None:
        while self._made:
            kind, handle = self._made.pop()
            self._owner.call(f"{kind}_destroy", handle)


class _Product(_Primitive):
    def _described(self, sources: list[_Handle], out: _Handle, options: _Handle) -> _Handle:
        left, right = sources
        arguments = (self._owner.engine, left, right, None, out, options)
        return self._new("primitive_desc", "matmul_primitive_desc_create", *arguments)

    def _indices(self, count: int) -> tuple[int, ...]:
        return _SOURCE, _WEIGHTS


class _Sum(_Primitive):
    def _described(self, sources: list[_Handle], out: _Handle, options: _Handle) -> _Handle:
        count = len(sources)
        ones, layouts = (ctypes.c_float * count)(*[1.0] * count), (_Handle * count)(*sources)
        arguments = (self._owner.engine, out, count, ones, layouts, options)
        return self._new("primitive_desc", "sum_primitive_desc_create", *arguments)

    def _indices(self, count: int) -> tuple[int, ...]:
        return tuple(range(_SOURCES, _SOURCES + count))
