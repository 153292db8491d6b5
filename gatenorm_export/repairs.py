"""What takes the place of removed attention, as arrays: how it is computed, what it costs, how it is kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from gatenorm_export.errors import InputError, UsageError
from gatenorm_export.records import RepairedLayer, RepairRecord

StandInKind = Literal["none", "bias", "linear"]

REPAIR_FILE = "repair.safetensors"
"""Beside a repaired graph: ``layer.{n}.bias``, ``layer.{n}.weight_{i}``, ``layer.{n}.down``, all float32."""


@dataclasses.dataclass(frozen=True)
class Repair:
    """The repair that a user asks for: a stand-in where attention was, a new last matrix of the layer's MLP, or both.

    ``rank`` is that of a linear stand-in, None a full matrix.
    """

    stand_in: StandInKind = "none"
    rank: int | None = None
    mlp: bool = False

    @property
    def nothing(self) -> bool:
        """Whether nothing is to be fitted."""
        return self.stand_in == "none" and not self.mlp

    def __str__(self) -> str:
        stand_in = self.stand_in if self.rank is None else f"{self.stand_in}:{self.rank}"
        if not self.mlp:
            return stand_in
        return "mlp" if self.stand_in == "none" else f"{stand_in}+mlp"


def parse_repair(text: str) -> Repair:
    """Read ``none``, ``bias``, ``mlp``, ``linear``, ``linear:RANK``, or a stand-in with the MLP, such as ``bias+mlp``.

    Raises:
        UsageError: none of these.
    """
    match = re.fullmatch(r"(none|mlp)|(bias|linear)(?::([1-9]\d{0,5}))?(\+mlp)?", text.strip())
    if match is None or (match[3] and match[2] != "linear"):
        raise UsageError(
            f"repair {text!r}: write none, bias, mlp, linear or linear:RANK, such as linear:64; "
            "a stand-in and the MLP together as bias+mlp or linear+mlp"
        )
    if match[1]:
        return Repair(mlp=match[1] == "mlp")
    stand_in: StandInKind = "bias" if match[2] == "bias" else "linear"
    return Repair(stand_in, int(match[3]) if match[3] else None, mlp=bool(match[4]))


@dataclasses.dataclass(frozen=True)
class LayerRepair:
    """What was fitted for one removed layer; everything is float32.

    ``bias`` [d_model] and ``factors`` make up a stand-in; ``down`` [d_hidden, d_model] is the MLP's new last matrix.
    ``unexplained`` is the share of the target's squares that is left on windows which the fit did not see, 1 being as
    good as nothing.
    """

    layer: int
    bias: np.ndarray | None = None
    factors: tuple[np.ndarray, ...] = ()
    down: np.ndarray | None = None
    ridge: float | None = None
    unexplained: float | None = None

    def branch(self, read: np.ndarray | None, like: np.ndarray) -> np.ndarray:
        """What the layer's stand-in adds to the stream ``like``; zeros where it has none."""
        if self.bias is None:
            return np.zeros_like(like)
        if not self.factors:
            return np.broadcast_to(self.bias, like.shape)
        assert read is not None
        value = read.reshape(-1, read.shape[-1])
        for factor in self.factors:
            value = value @ factor
        return np.asarray((value + self.bias).reshape(like.shape))

    @property
    def n_parameters(self) -> int:
        """Parameters that the repair adds; a new down-projection replaces one of the same size."""
        return sum(array.size for array in (*self.factors, *((self.bias,) if self.bias is not None else ())))

    @property
    def flops_per_token(self) -> int:
        """Multiplications and additions that it adds for each token."""
        added = self.bias.size if self.bias is not None else 0
        # Onto the stream: without a stand-in the removed sublayer's sum is gone as well.
        joined = added if self.factors else 0
        return sum(2 * factor.size for factor in self.factors) + added + joined


@dataclasses.dataclass(frozen=True)
class Repaired:
    """A fitted repair of a whole plan, and the text that it was fitted on."""

    repair: Repair
    layers: Mapping[int, LayerRepair]
    text: str
    text_sha256: str
    n_tokens: int

    def record(self, file: str, removed_parameters: int) -> RepairRecord:
        """What a manifest says of it; ``removed_parameters`` is net of what the repair adds."""
        layers = tuple(
            RepairedLayer(
                layer=layer,
                ridge=repair.ridge,
                unexplained=repair.unexplained,
                n_parameters=repair.n_parameters,
                flops_per_token=repair.flops_per_token,
            )
            for layer, repair in sorted(self.layers.items())
        )
        added = sum(layer.n_parameters for layer in layers)
        return RepairRecord(
            kind=str(self.repair),
            file=file,
            text=self.text,
            text_sha256=self.text_sha256,
            n_tokens=self.n_tokens,
            layers=layers,
            n_parameters=added,
            flops_per_token=sum(layer.flops_per_token for layer in layers),
            removed_flops_per_token=2 * (removed_parameters + added),
        )


def joined_record(earlier: RepairRecord, later: RepairRecord | None, file: str) -> RepairRecord:
    """The record of a graph that was repaired, pruned again, and perhaps repaired again."""
    if later is None:
        return earlier.model_copy(update={"file": file})
    replaced = {layer.layer for layer in later.layers}
    layers = (*(layer for layer in earlier.layers if layer.layer not in replaced), *later.layers)
    return later.model_copy(
        update={
            "kind": later.kind if later.kind == earlier.kind else f"{earlier.kind}, then {later.kind}",
            "layers": tuple(sorted(layers, key=lambda layer: layer.layer)),
            "n_parameters": sum(layer.n_parameters for layer in layers),
            "flops_per_token": sum(layer.flops_per_token for layer in layers),
            "removed_flops_per_token": earlier.removed_flops_per_token + later.removed_flops_per_token,
        }
    )


def save_repairs(repairs: Mapping[int, LayerRepair], path: Path) -> None:
    """Write every array of the repairs into one safetensors file."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for layer, repair in sorted(repairs.items()):
        if repair.bias is not None:
            tensors[f"layer.{layer}.bias"] = np.ascontiguousarray(repair.bias)
        for number, factor in enumerate(repair.factors):
            tensors[f"layer.{layer}.weight_{number}"] = np.ascontiguousarray(factor)
        if repair.down is not None:
            tensors[f"layer.{layer}.down"] = np.ascontiguousarray(repair.down)
    save_file(tensors, path)


def repairs_of(graph: Path, record: RepairRecord) -> dict[int, LayerRepair]:
    """The repairs that are in a graph, from the file beside it that its record names.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    # The name alone: a record cannot lead out of the graph's folder.
    return load_repairs(graph.parent / Path(record.file).name)


def load_repairs(path: Path) -> dict[int, LayerRepair]:
    """Read what :func:`save_repairs` wrote.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except Exception as error:
        raise InputError(f"{path}: not readable safetensors ({error}); prune again with --repair") from error
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        match = re.fullmatch(r"layer\.(\d{1,6})\.(bias|weight_\d|down)", name)
        if match is None:
            raise InputError(f"{path}: holds the tensor {name}, which no repair has; prune again with --repair")
        found.setdefault(int(match[1]), {})[match[2]] = array
    return {
        layer: LayerRepair(
            layer,
            bias=arrays.get("bias"),
            factors=tuple(arrays[name] for name in sorted(arrays) if name.startswith("weight_")),
            down=arrays.get("down"),
        )
        for layer, arrays in found.items()
    }
