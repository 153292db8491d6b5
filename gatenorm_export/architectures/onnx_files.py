"""An ONNX graph by itself: towers as the graph's analysis found them, weights under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.layouts import SEPARATE
from gatenorm_export.architectures.resolving import Tensors, check_tensors
from gatenorm_export.architectures.tower import LayerTensors, Tower
from gatenorm_export.errors import RefusedError


def onnx_towers(fields: Mapping[str, Any], tensors: Tensors, *, where: str) -> tuple[Tower, ...]:
    """The towers that ``fields["towers"]`` of an ONNX source describes; query and key are separate already.

    Raises:
        InputError: a tensor is missing or has another shape.
        RefusedError: the layers of a tower have heads of different sizes.
    """
    return tuple(_tower(described, tensors, where) for described in fields["towers"])


def _tower(described: Mapping[str, Any], tensors: Tensors, where: str) -> Tower:
    n_heads, n_kv_heads, head_dim = (described[key] for key in ("n_heads", "n_kv_heads", "head_dim"))
    layers = []
    for layer in described["layers"]:
        if layer["head_dim"] != head_dim:
            raise RefusedError(
                f"{where}: layer {layer['layer']} has heads of {layer['head_dim']}, others of {head_dim}; "
                "they are not scored together"
            )
        prefix = f"{described['prefix']}.{layer['layer']}"
        layers.append(
            LayerTensors(
                layer["layer"],
                (f"{prefix}.query", f"{prefix}.key"),
                None,
                None if layer["n_heads"] == n_heads else layer["n_heads"],
                None if layer["n_kv_heads"] == n_kv_heads else layer["n_kv_heads"],
            )
        )
    tower = Tower(
        name=described["name"],
        n_layers=described["n_layers"],
        d_model=described["d_model"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        layout=SEPARATE,
        layers=tuple(layers),
    )
    check_tensors(tower, tensors, where)
    return tower
