"""From a config and a table of tensors to towers: dimensions read, tensors found, shapes checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gatenorm_export.architectures.adapter import Adapter, DimKeys, TowerRow
from gatenorm_export.architectures.tower import LayerTensors, Tower
from gatenorm_export.checkpoints.tensors import TensorInfo
from gatenorm_export.errors import InputError, RefusedError

Tensors = Mapping[str, TensorInfo]

NUMBER = "(0|[1-9][0-9]{0,8})"
"""A layer's number in a name, as an expression: no leading zeros, and short enough for any real one."""

_SHOWN = 6
"""How many names a message lists."""


def resolve_towers(adapter: Adapter, config: Mapping[str, Any], tensors: Tensors, *, where: str) -> tuple[Tower, ...]:
    """The towers of a known family, every tensor found and its shape checked.

    Raises:
        InputError: the config lacks a dimension or it makes no sense, or a tensor is missing or has another shape.
        RefusedError: the names of several stacks end alike.
    """
    towers = []
    for row in adapter.towers:
        section = nested(config, row.dims.section, where)
        if adapter.variant is not None:
            row = adapter.variant(row, section, where)
        towers.append(_resolve(row, section, tensors, where))
    return tuple(towers)


def nested(config: Mapping[str, Any], section: str | None, where: str) -> Mapping[str, Any]:
    """A config, or the part of it that describes one of several towers.

    Raises:
        InputError: it is no object.
    """
    if section is None:
        return config
    value = config.get(section, {})
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {section} is {value!r}, where an object is needed")
    return value


def positive(source: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A positive whole number of a config; ``default`` where it is absent or null.

    Raises:
        InputError: it is neither, or absent without a default.
    """
    value = source.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value <= 0:
        raise InputError(f"{where}: {key} is {value!r}, where a positive number is needed")
    return value


def _resolve(row: TowerRow, config: Mapping[str, Any], tensors: Tensors, where: str) -> Tower:
    n_layers, d_model, n_heads, n_kv_heads, head_dim = dimensions(row.dims, config, where)
    prefix = _prefix(row, tensors, n_layers, where)
    layers = []
    for layer in range(n_layers):
        names = tuple(prefix + tail.format(layer=layer) for tail in row.tensors)
        # At once, not when all are listed: a damaged config may say a billion layers.
        _require(names, tensors, where)
        norms = (prefix + tail.format(layer=layer) for tail in row.norm)
        layers.append(LayerTensors(layer, names, next((name for name in norms if name in tensors), None)))
    tower = Tower(
        name=row.name,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        layout=row.layout,
        layers=tuple(layers),
        norm=prefix + row.norm[0] if row.norm else None,
        normed_from=row.normed_from,
        norm_offset=row.norm_offset,
    )
    check_tensors(tower, tensors, where)
    return tower


def dimensions(keys: DimKeys, config: Mapping[str, Any], where: str) -> tuple[int, int, int, int, int]:
    """n_layers, d_model, n_heads, n_kv_heads, head_dim.

    Raises:
        InputError: one is missing or senseless, or they do not fit each other.
    """
    given = {key: value for key, value in config.items() if value is not None}
    renamed = {key: given[alias] for alias, key in keys.aliases if alias in given}
    config = {**dict(keys.defaults), **renamed, **given}
    n_layers = positive(config, keys.n_layers, where)
    d_model = positive(config, keys.d_model, where)
    n_heads = positive(config, keys.n_heads, where)
    n_kv_heads = keys.kv_heads or n_heads
    if keys.kv_heads is None and keys.n_kv_heads is not None:
        n_kv_heads = positive(config, keys.n_kv_heads, where, n_heads)
    if n_heads % n_kv_heads:
        raise InputError(
            f"{where}: {keys.n_heads} is {n_heads}, and so many query heads do not divide among {n_kv_heads} key heads"
        )
    if keys.head_size is not None:
        return n_layers, d_model, n_heads, n_kv_heads, keys.head_size
    if keys.head_dim is not None and keys.head_dim in config:
        return n_layers, d_model, n_heads, n_kv_heads, positive(config, keys.head_dim, where)
    if d_model % n_heads:
        raise InputError(
            f"{where}: {keys.d_model} is {d_model}, which {n_heads} heads ({keys.n_heads}) do not divide, and no "
            "head size is given"
        )
    return n_layers, d_model, n_heads, n_kv_heads, d_model // n_heads


def check_tensors(tower: Tower, tensors: Tensors, where: str) -> None:
    """Every tensor of a tower is there and has the shape that its layout needs.

    Raises:
        InputError: one is not, or has not.
    """
    for layer in tower.layers:
        _require(layer.names, tensors, where)
        for name, shape in zip(layer.names, tower.shapes(layer), strict=True):
            info = tensors[name]
            if tuple(info.shape) != shape:
                raise InputError(
                    f"{info.file}: tensor {name} is {list(info.shape)}, but the config says {list(shape)} "
                    f"({tower.n_heads} query heads and {tower.n_kv_heads} key heads of {tower.head_dim}, model width "
                    f"{tower.d_model}; {tower.layout.description})"
                )


def _require(names: tuple[str, ...], tensors: Tensors, where: str) -> None:
    for name in names:
        if name not in tensors:
            raise InputError(f"{where}: tensor {name} is missing from the checkpoint")


def _prefix(row: TowerRow, tensors: Tensors, n_layers: int, where: str) -> str:
    """What stands before the names of a row in this checkpoint: the same for all layers."""
    before, after = (re.escape(part) for part in row.tensors[0].split("{layer}"))
    ending = re.compile(rf"(?P<prefix>(?:.*\.)?){before}(?P<layer>{NUMBER}){after}")
    layers: dict[str, set[int]] = {}
    for name in tensors:
        match = ending.fullmatch(name)
        if match and (row.under is None or row.under in match["prefix"]) and int(match["layer"]) < n_layers:
            layers.setdefault(match["prefix"], set()).add(int(match["layer"]))
    if not layers:
        raise InputError(
            f"{where}: tensor {row.tensors[0].format(layer=0)} is missing: no name in the checkpoint ends like that, "
            f"whatever comes before; it holds {shown(tensors)}"
        )
    if len(layers) > 1:
        found = ", ".join(sorted(prefix + row.tensors[0] for prefix in layers))
        raise RefusedError(
            f"{where}: several stacks of layers have such names ({found}), and which one is meant cannot be known; "
            "name it with --q-pattern and --k-pattern"
        )
    return next(iter(layers))


def shown(names: Mapping[str, object]) -> str:
    """A few names for a message."""
    some = list(names)[:_SHOWN]
    return ", ".join(some) + (f" and {len(names) - len(some)} more" if len(names) > len(some) else "") or "nothing"
