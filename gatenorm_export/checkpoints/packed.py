"""Checkpoints whose weights were packed or scaled by a quantiser: undone here, or refused by name.

Conventions: fp8 as DeepSeek, compressed-tensors, fbgemm and vLLM keep it, weight * scale for ``weight_scale`` and
``weight_scale_inv`` alike (the latter is the inverse of what the quantiser multiplied with), one scale for a tensor, a
row, or a block. GPTQ: columns of [in, out] packed from the lowest bits of int32 on, (q - zero) * scale by group of
inputs, zero points kept less one except in checkpoint format gptq_v2. AWQ (gemm): rows packed eight to an int32 in the
order 0 2 4 6 1 3 5 7, zero points as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import xxhash

from gatenorm_export.checkpoints.tensors import StoredTensor, TensorInfo
from gatenorm_export.errors import InputError

_SCALES = ("weight_scale_inv", "weight_scale")
_PACKED = "qweight"
SCALED = " scaled"
"""How the type of a weight ends that is kept with a scale."""
_USUAL_BLOCKS = (128, 128)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# What other quantisers keep in place of a weight, or beside one, and how they are called.
_FOREIGN: dict[str, str] = {
    "weight_packed": "compressed-tensors (packed integers)",
    "weight_scale_2": "ModelOpt (NVFP4)",
    "weight_zero_point": "compressed-tensors (asymmetric)",
    "weight.absmax": "bitsandbytes (4 bits)",
    "SCB": "bitsandbytes (8 bits)",
    "W_q": "HQQ",
    "codebooks": "AQLM",
    "weight_scales": "EETQ",
    "weight._data": "quanto",
    "q_weight": "EXL2",
}
# What is taken from a kept zero point, by the name of the format.
_GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}


class _Source(Protocol):
    """A source that is not undone: the names without opening a file, and tensors as they are stored."""

    @property
    def where(self) -> str: ...

    @property
    def names(self) -> Mapping[str, str]: ...

    def info(self, name: str) -> TensorInfo: ...

    def read(self, name: str) -> StoredTensor: ...

    def close(self) -> None: ...


class UnpackedSource:
    """The tensors of a source as the weights that they stand for."""

    def __init__(self, source: _Source, method: Mapping[str, Any]) -> None:
        """``method`` is the config's quantization_config, empty where it has none."""
        self._source = source
        self._method = method
        blocks = method.get("weight_block_size")
        whole = isinstance(blocks, list) and len(blocks) == 2 and all(type(size) is int and size > 0 for size in blocks)
        self._blocks: tuple[int, int] = (blocks[0], blocks[1]) if whole and blocks else _USUAL_BLOCKS
        names = source.names
        packed = {_stem(name) + ".weight": name for name in names if name.endswith("." + _PACKED)}
        foreign = {f"{name.removesuffix(end)}weight": kind for end, kind, name in _foreign(names)}
        beside = {
            f"{_stem(name)}.{part}" for name in packed.values() for part in (_PACKED, "qzeros", "scales", "g_idx")
        }
        own = {name: name for name in names if name not in beside and not name.endswith(_SCALES)}
        self._origin: dict[str, str] = {**dict.fromkeys(foreign, ""), **own, **packed}
        self._foreign = foreign
        self.tensors: Mapping[str, TensorInfo] = _Listing(self._origin, self._info)
        self.fields: Mapping[str, Any] = {}

    def read(self, name: str) -> StoredTensor:
        """See :class:`gatenorm_export.checkpoints.TensorSource`."""
        origin = self._origin.get(name)
        if origin is None:
            return self._source.read(name)
        info = self._info(name)
        if origin != name:
            return self._unpack(_stem(origin), info)
        scale = self._scale_of(name)
        stored = self._source.read(name)
        if scale is None:
            return stored
        factor = self._source.read(scale)
        where = f"{info.file}: tensor {name}"
        values = _scaled(stored.values, factor.values.astype(np.float32), self._blocks, where, scale)
        return StoredTensor(values, _joined(stored, factor))

    def close(self) -> None:
        """Close the files."""
        self._source.close()

    def _info(self, name: str) -> TensorInfo:
        origin = self._origin[name]
        if name in self._foreign:
            kind = self._foreign[name]
            raise InputError(
                f"{self._source.where}: tensor {name} is packed by {kind}, in a way that is not undone here; score the "
                "checkpoint that it was made from, the ranking is the same but for rounding"
            )
        info = self._source.info(origin)
        if origin != name:
            return self._packed_info(name, info)
        scale = self._scale_of(name)
        if scale is not None:
            beside = self._source.info(scale)
            return TensorInfo(name, info.shape, f"{info.dtype}{SCALED}", info.nbytes + beside.nbytes, info.file)
        return info

    def _scale_of(self, name: str) -> str | None:
        stem = name.removesuffix("weight")
        if stem == name:
            return None
        return next((stem + end for end in _SCALES if stem + end in self._source.names), None)

    def _packed_info(self, name: str, info: TensorInfo) -> TensorInfo:
        stem = _stem(name)
        where = f"{info.file}: tensor {info.name}"
        for part in ("qzeros", "scales"):
            if f"{stem}.{part}" not in self._source.names:
                raise InputError(
                    f"{where} has no {stem}.{part} beside it; it is packed in a way that is not known here"
                )
        zeros, scales = (self._source.info(f"{stem}.{part}") for part in ("qzeros", "scales"))
        if info.dtype != "I32" or not len(info.shape) == len(zeros.shape) == len(scales.shape) == 2:
            raise InputError(f"{where} is {info.dtype} {list(info.shape)}, which is neither GPTQ's nor AWQ's packing")
        width, groups = scales.shape[1], scales.shape[0]
        bits = 32 * zeros.shape[1] // max(width, 1)
        awq = info.shape[1] != width
        depth = info.shape[0] if awq else 32 * info.shape[0] // max(bits, 1)
        words = info.shape[0] * 32 == depth * bits and info.shape[1] == width
        if awq:
            words = bits == 4 and info.shape[1] * 8 == width
        if not words or zeros.shape != (groups, width * bits // 32) or not groups or bits not in {2, 3, 4, 8}:
            raise InputError(
                f"{where} {list(info.shape)}, its zero points {list(zeros.shape)} and scales {list(scales.shape)} do "
                "not fit GPTQ's or AWQ's packing"
            )
        parts = [info, zeros, scales]
        if f"{stem}.g_idx" in self._source.names:
            parts.append(self._source.info(f"{stem}.g_idx"))
        form = f"{'AWQ' if awq else 'GPTQ'} {bits}-bit"
        self._check_method(where, awq=awq)
        return TensorInfo(name, (width, depth), form, sum(part.nbytes for part in parts), info.file)

    def _check_method(self, where: str, *, awq: bool) -> None:
        named = self._method.get("quant_method")
        method, version = None if named is None else str(named), str(self._method.get("version", "gemm")).lower()
        form = str(self._method.get("checkpoint_format") or "gptq")
        if awq and (method not in {"awq", None} or version != "gemm"):
            raise InputError(f"{where} is packed by {method} ({version}), which is not undone here")
        if not awq and (method not in {"gptq", None} or form not in _GPTQ_FORMATS):
            raise InputError(f"{where} is packed by {method} ({form}), which is not undone here")

    def _unpack(self, stem: str, info: TensorInfo) -> StoredTensor:
        parts = [self._source.read(f"{stem}.{part}") for part in (_PACKED, "qzeros", "scales")]
        packed, zeros, scales = (part.values for part in parts)
        width, depth = info.shape
        bits = 32 * zeros.shape[1] // width
        groups = np.arange(depth) // -(-depth // scales.shape[0])
        if info.dtype.startswith("AWQ"):
            order = np.arange(width).reshape(-1, 8)[:, _AWQ_ORDER].reshape(-1)
            values = _unpacked(packed.T, bits)[np.argsort(order)].T
            offsets = _unpacked(zeros.T, bits)[np.argsort(order)].T
        else:
            values = _unpacked(packed, bits)
            offsets = _unpacked(zeros.T, bits).T
            shift = _GPTQ_FORMATS[self._method.get("checkpoint_format") or "gptq"]
            offsets = (offsets + shift) & (2**bits - 1)
            if f"{stem}.g_idx" in self._source.names:
                index = self._source.read(f"{stem}.g_idx")
                parts.append(index)
                groups = index.values.astype(np.int64).reshape(-1)
        if len(groups) != depth or groups.min() < 0 or groups.max() >= scales.shape[0]:
            raise InputError(f"{info.file}: tensor {stem}.g_idx does not name a group of each of {depth} inputs")
        weight = values.astype(np.float32)
        weight -= offsets.astype(np.float32)[groups]
        weight *= scales.astype(np.float32)[groups]
        return StoredTensor(np.ascontiguousarray(weight.T), _joined(*parts))


class _Listing(Mapping[str, TensorInfo]):
    def __init__(self, names: Mapping[str, str], info: Any) -> None:
        self._names, self._info = names, info

    def __getitem__(self, name: str) -> TensorInfo:
        if name not in self._names:
            raise KeyError(name)
        info: TensorInfo = self._info(name)
        return info

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_packed(names: Mapping[str, str]) -> bool:
    """Whether a checkpoint with these tensors must be undone."""
    return any(name.endswith(("." + _PACKED, *_SCALES)) for name in names) or any(True for _ in _foreign(names))


def _foreign(names: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name in names:
        end = next((end for end in _FOREIGN if name.endswith("." + end)), None)
        if end is not None:
            yield end, _FOREIGN[end], name


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _joined(*parts: StoredTensor) -> str:
    return str(xxhash.xxh3_128_hexdigest(" ".join(part.digest for part in parts).encode()))


def _scaled(values: np.ndarray, scale: np.ndarray, blocks: tuple[int, int], where: str, name: str) -> np.ndarray:
    """values * scale in float32: one scale, one for each row, or one for each block of rows and columns."""
    weight = values.astype(np.float32)
    if scale.size == 1:
        weight *= scale.reshape(())
        return weight
    if weight.ndim == 2 and scale.shape in {(weight.shape[0],), (weight.shape[0], 1)}:
        weight *= scale.reshape(-1, 1)
        return weight
    if weight.ndim == 2 and scale.ndim == 2 and 0 not in scale.shape:
        rows, columns = map(_block, weight.shape, scale.shape, blocks)
        if rows and columns:
            for block, row in enumerate(scale):
                weight[block * rows : (block + 1) * rows] *= np.repeat(row, columns)[: weight.shape[1]]
            return weight
    raise InputError(f"{where} {list(values.shape)} does not fit its scales {name} {list(scale.shape)}")


def _block(length: int, count: int, usual: int) -> int:
    """The size of the blocks that cut ``length`` into ``count``, the last of which may be short; 0 if untellable."""
    if -(-length // usual) == count:
        return usual
    return length // count if length % count == 0 else 0


def _unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 words [n, m] -> values [n * 32 / bits, m]: along the first axis a stream of bits, the lowest first."""
    stream = words.view(np.uint32) if words.flags.c_contiguous else np.ascontiguousarray(words).view(np.uint32)
    # 32 values fill as many words as they have bits.
    periods = len(stream) // bits if bits == 3 else len(stream)
    per_period, span = (32, 3) if bits == 3 else (32 // bits, 1)
    stream = stream[: periods * span].reshape(periods, span, -1)
    values = np.empty((periods, per_period, stream.shape[-1]), dtype=np.uint8)
    mask = np.uint32(2**bits - 1)
    for index in range(per_period):
        word, shift = divmod(index * bits, 32)
        part = stream[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            part = part | (stream[:, word + 1] << np.uint32(32 - shift))
        values[:, index] = part & mask
    return values.reshape(periods * per_period, -1)
