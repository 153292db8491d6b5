"""The query and key weights of a checkpoint, one layer at a time, without torch and without a model object."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from gatenorm_export.architectures import (
    LayerTensors,
    NamePatterns,
    Tower,
    towers_of,
    towers_of_gguf,
    towers_of_onnx,
)
from gatenorm_export.checkpoints import StoredTensor, TensorSource, open_tensors
from gatenorm_export.checkpoints.locate import CONFIG
from gatenorm_export.checkpoints.opening import folder_of
from gatenorm_export.checkpoints.packed import SCALED
from gatenorm_export.checkpoints.ranges import read_json
from gatenorm_export.errors import InputError
from gatenorm_export.records import ModelSpec, TowerSpec
from gatenorm_export.scoring.norms import gain_of
from gatenorm_export.urls import shown

_WHOLE_NUMBERS = frozenset({"BOOL", *(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64))})
_WITH_CONFIG = frozenset({"safetensors", "torch"})


@dataclass(frozen=True)
class LayerWeights:
    """Query [n_heads * head_dim, d_model] and key [n_kv_heads * head_dim, d_model] of one layer, in the stored
    precision where numpy has it, and the tensors that they come from."""

    query: np.ndarray
    key: np.ndarray
    tensors: tuple[StoredTensor, ...]

    @property
    def digest(self) -> str:
        """Of the tensors as they are stored."""
        return " ".join(tensor.digest for tensor in self.tensors)


@dataclass(frozen=True)
class TowerWeights:
    """One tower of an open checkpoint."""

    tower: Tower
    source: TensorSource
    where: str

    def load(self, layer: LayerTensors) -> LayerWeights:
        """Read one layer.

        Raises:
            InputError: a tensor cannot be read; the text names file and tensor.
        """
        tensors = tuple(self.source.read(name) for name in layer.names)
        query, key = self.tower.split(layer, [tensor.values for tensor in tensors])
        return LayerWeights(query, key, tensors)

    def gain(self, layer: LayerTensors) -> np.ndarray:
        """What the norm before attention multiplies by, [d_model] float64; ones where the stream is normed already.

        Raises:
            InputError: it cannot be read.
        """
        if layer.norm is None:
            return np.ones(self.tower.d_model)
        return gain_of(self.source.read(layer.norm).values, self.tower.norm_offset)

    def damage(self, layer: LayerTensors) -> InputError:
        """The error that names the tensor of a layer that holds NaN or infinity."""
        for name in layer.names:
            # float64 holds every stored type; float32 would take the largest of float64 for infinity.
            if not np.isfinite(self.source.read(name).values.astype(np.float64)).all():
                file = self.source.tensors[name].file
                return InputError(f"{file}: tensor {name} holds NaN or infinity; the checkpoint is damaged")
        # Every value is finite, so what is not is their product: float64 has room for all but senseless weights.
        return InputError(f"{self.where}: the score of layer {layer.layer} is not finite; its weights are senseless")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """How the tensors are stored, each kind once."""
        names = (name for layer in self.tower.layers for name in layer.names)
        return tuple(sorted({self.source.tensors[name].dtype for name in names}))


@contextlib.contextmanager
def open_towers(spec: ModelSpec) -> Iterator[tuple[TowerWeights, ...]]:
    """Open a checkpoint and find the query and key weights of all its towers; only headers are read.

    Raises:
        InputError: a tensor is missing or has another shape than the config says; the text names it.
        RefusedError: the architecture is not known, and names and shapes do not tell which tensors are meant.
        MissingPartError: the kind of checkpoint needs a package that is not installed.
    """
    with open_tensors(spec) as source:
        config = read_json(folder_of(spec.path)[0], CONFIG) if spec.source in _WITH_CONFIG else {}
        towers = _towers(spec, source, config)
        _require_scales(towers, source, quantised=bool(config.get("quantization_config")))
        yield tuple(TowerWeights(tower, source, shown(spec.path)) for tower in towers)


def _towers(spec: ModelSpec, source: TensorSource, config: Mapping[str, Any]) -> tuple[Tower, ...]:
    patterns, where = None, shown(spec.path)
    if spec.query_pattern is not None and spec.key_pattern is not None:
        patterns = NamePatterns(spec.query_pattern, spec.key_pattern)
    if spec.source == "onnx":
        if patterns is not None:
            raise InputError(f"{where}: attention is found in the graph itself; leave --q-pattern and --k-pattern out")
        return towers_of_onnx(source.fields, source.tensors, where=where)
    if spec.source == "gguf":
        return towers_of_gguf(source.fields, source.tensors, patterns=patterns, where=where)
    return towers_of(spec.architecture, config, source.tensors, patterns=patterns, where=where)


def _require_scales(towers: tuple[Tower, ...], source: TensorSource, *, quantised: bool) -> None:
    """Refuse numbers that only mean something with a scale that is not there.

    Plain fp8 is a way to store weights; it is taken for a lost scale where the config tells of a quantiser, or where
    others of the same model have one.
    """
    infos = [source.tensors[name] for tower in towers for layer in tower.layers for name in layer.names]
    quantised = quantised or any(info.dtype.endswith(SCALED) for info in infos)
    for info in infos:
        if info.dtype in _WHOLE_NUMBERS or (quantised and info.dtype.startswith("F8_") and " " not in info.dtype):
            raise InputError(
                f"{info.file}: tensor {info.name} is stored as {info.dtype} and no scale lies beside it, so what its "
                "numbers stand for is not known; score the checkpoint that it was quantised from"
            )


def query_key_digest(layers: dict[int, str]) -> str:
    """xxh3-128 over the digests of a tower's layers: the same however a checkpoint is cut into files."""
    state = xxhash.xxh3_128()
    for layer, digest in sorted(layers.items()):
        state.update(f"{layer} {digest}\n".encode())
    return str(state.hexdigest())


def describe_towers(spec: ModelSpec, *, digests: bool) -> tuple[TowerSpec, ...]:
    """The dimensions of every tower; with ``digests`` also its :func:`query_key_digest`, for stages that do not score.

    Raises:
        InputError, RefusedError, MissingPartError: as :func:`open_towers`.
    """
    with open_towers(spec) as opened:
        return tuple(
            TowerSpec(
                name=weights.tower.name,
                n_layers=len(weights.tower.layers),
                d_model=weights.tower.d_model,
                n_heads=weights.tower.n_heads,
                n_kv_heads=weights.tower.n_kv_heads,
                head_dim=weights.tower.head_dim,
                query_key_digest=query_key_digest(
                    {layer.layer: weights.load(layer).digest for layer in weights.tower.layers}
                )
                if digests
                else None,
            )
            for weights in opened
        )
