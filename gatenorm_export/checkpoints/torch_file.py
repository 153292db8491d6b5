"""PyTorch's pickled state dicts (``.bin``), unpickled by torch with nothing allowed but tensors."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.checkpoints.dtypes import NUMPY
from gatenorm_export.checkpoints.tensors import Listing, StoredTensor, TensorInfo
from gatenorm_export.errors import InputError, needs

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

_DTYPES: dict[str, str] = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
# Trainers wrap the weights in one of these.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


class TorchSource:
    """The tensors of one pickled file, or of the shards that an index names; files are memory-mapped."""

    def __init__(self, folder: Path, *, file: str | None = None, weight_map: Mapping[str, str] | None = None) -> None:
        """Tensors of ``file``, or of the shards in ``weight_map`` (tensor name -> file name).

        Raises:
            InputError: a file is damaged, or holds more than tensors.
            MissingPartError: torch is not installed.
        """
        self._folder = folder
        self._files: dict[str, dict[str, Any]] = {}
        if file is not None:
            weight_map = dict.fromkeys(self._load(file), file)
        assert weight_map is not None
        self._holder = weight_map
        self.tensors: Mapping[str, TensorInfo] = Listing(self._holder, self.info)
        self.fields: Mapping[str, Any] = {}

    def read(self, name: str) -> StoredTensor:
        """See :class:`gatenorm_export.checkpoints.TensorSource`."""
        import torch

        tensor, where = self._tensor(name)
        stored = _DTYPES.get(str(tensor.dtype))
        if stored is None or tensor.layout != torch.strided or tensor.is_quantized:
            form = "as" if stored is None else "quantised in" if tensor.is_quantized else "sparse in"
            raise InputError(
                f"{where}: tensor {name} is stored {form} {tensor.dtype}, which weights cannot be read from"
            )
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        data = np.array(raw)
        return StoredTensor(data.view(NUMPY[stored]).reshape(tuple(tensor.shape)), data)

    def info(self, name: str) -> TensorInfo:
        """One row of the table."""
        tensor, where = self._tensor(name)
        dtype = _DTYPES.get(str(tensor.dtype), str(tensor.dtype))
        return TensorInfo(name, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size(), where)

    @property
    def where(self) -> str:
        """The folder, for messages."""
        return str(self._folder)

    @property
    def names(self) -> Mapping[str, str]:
        """Tensor name -> file name; no shard is opened to tell."""
        return self._holder

    def close(self) -> None:
        """Let go of the files."""
        self._files.clear()

    def _tensor(self, name: str) -> tuple[Any, str]:
        file = self._holder.get(name)
        if file is None:
            raise InputError(f"{self._folder}: tensor {name} is in none of the PyTorch files")
        tensor = self._load(file).get(name)
        if tensor is None:
            raise InputError(f"{self._folder / file}: tensor {name} is not in it, but the index says so")
        return tensor, str(self._folder / file)

    def _load(self, file: str) -> dict[str, Any]:
        if file not in self._files:
            self._files[file] = _load_tensors(self._folder / file)
        return self._files[file]


def _load_tensors(path: Path) -> dict[str, Any]:
    with needs("export", f"{path}: a pickled checkpoint"):
        import torch
    if not path.is_file():
        raise InputError(f"{path}: the index names this shard, but it is not there; fetch it again")
    try:
        # Only zip archives can be mapped; torch before 1.6 wrote a bare pickle, which is read whole.
        with path.open("rb") as file:
            start = file.read(4)
        mapped = start == b"PK\x03\x04"
        if not mapped and not start.startswith(b"\x80"):
            # torch would try it as an archive of tar's, for which it makes a folder.
            raise InputError(f"{path}: is neither a zip archive nor a pickle, as PyTorch files are; copy it again")
        if mapped:
            _check_archive(path)
        value = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: is cut off or damaged; copy it again") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: its pickle is damaged, or holds more than weights and would run code; it was not loaded, get the "
            "weights as safetensors, or load them where you trust them and convert them to safetensors"
        ) from error
    except Exception as error:
        # A damaged archive surfaces as RuntimeError, EOFError, KeyError, UnicodeDecodeError and others.
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: not a readable PyTorch file ({line[:160]}); copy it again, or get the weights as safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    tensors = value if isinstance(value, dict) else {}
    found = {name: item for name, item in tensors.items() if isinstance(name, str) and isinstance(item, torch.Tensor)}
    if not found:
        raise InputError(f"{path}: holds no table of tensors")
    for name, tensor in found.items():
        _check_storage(path, name, tensor)
    return found


def _check_archive(path: Path) -> None:
    """Refuse an archive whose entries are larger than the file: torch writes them as they are, never compressed."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise InputError(f"{path}: its entry {entry.filename} is compressed, which PyTorch never does; refused")


def _check_storage(path: Path, name: str, tensor: Any) -> None:
    """A tensor of strides of 0 claims any size on a few bytes; reading it would write all of it out."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        return
    if tensor.device.type != "cpu" or tensor.is_conj() or tensor.is_neg():
        raise InputError(f"{path}: tensor {name} holds no plain numbers; get the weights as safetensors")
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        raise InputError(f"{path}: tensor {name} claims {list(tensor.shape)} in {stored:,} bytes; copy it again")
