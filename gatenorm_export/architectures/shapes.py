"""From named query and key weights to a tower: heads by a config of unknown keys, held against the shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gatenorm_export.architectures.layouts import SEPARATE
from gatenorm_export.architectures.names import Pair
from gatenorm_export.architectures.resolving import Tensors, positive, shown
from gatenorm_export.architectures.tower import LayerTensors, Tower
from gatenorm_export.errors import InputError, RefusedError

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_WIDTHS = ("hidden_size", "d_model", "n_embd", "n_embed", "dim", "embed_dim")
_HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "attention_heads",
)
_KEY_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "n_head_kv", "num_query_groups")
_SIZES = ("head_dim", "kv_channels", "attention_head_dim", "d_kv", "head_size", "attention_head_size")

_DEEPEST = 3
"""How deep models nest the configs of their parts (thinker_config.text_config)."""

Fit = tuple[int, int, int]
"""n_heads, n_kv_heads, head_dim."""


def tower_of_pair(pair: Pair, config: Mapping[str, Any], tensors: Tensors, *, where: str, found: str) -> Tower:
    """A tower of separate query and key weights.

    ``found`` says how they were found. A config, and each object in it, is a candidate for what describes the tower;
    exactly one reading of them must fit the shapes.

    Raises:
        InputError: the config holds a senseless dimension, or tensors of a layer are missing.
        RefusedError: no reading of the config fits, or several do, or layers differ in shape.
    """
    for one, other, template in ((pair.queries, pair.keys, pair.key), (pair.keys, pair.queries, pair.query)):
        alone = [layer for layer in one if layer not in other]
        if alone:
            raise InputError(f"{where}: tensor {template.replace('{layer}', str(alone[0]))} is missing")
    query_shape = _one_shape(pair.queries, tensors, where)
    key_shape = _one_shape(pair.keys, tensors, where)
    shapes = f"{pair.query} is {list(query_shape)} and {pair.key} is {list(key_shape)}"
    if len(query_shape) != 2 or len(key_shape) != 2 or query_shape[1] != key_shape[1]:
        raise RefusedError(f"{where}: {shapes}; two matrices of the same width are needed")
    last = max(pair.queries)
    fitting = [
        (fit, _n_layers(section, last, where))
        for section in _sections(config)
        for fit in _fits(section, query_shape, key_shape, where)
    ]
    # A stack that has fewer layers than there are weights for is not the one meant.
    readings = {(fit, n_layers): None for fit, n_layers in fitting if n_layers is not None}
    if fitting and not readings:
        raise RefusedError(
            f"{where}: there is {pair.query.replace('{layer}', str(last))}, but the config says fewer layers; which "
            "are meant cannot be known"
        )
    if len(readings) != 1:
        why = (
            "no number of heads in the config fits that"
            if not readings
            else f"the config can be read in {len(readings)} ways that fit that"
        )
        raise RefusedError(
            f"{where}: {shapes}, and {why} (keys looked for: {', '.join((*_HEADS, *_KEY_HEADS, *_SIZES))}, each also "
            "inside a nested object)"
        )
    ((n_heads, n_kv_heads, head_dim), n_layers), *_ = readings
    _refuse_gaps(pair, n_layers, tensors, where)
    return Tower(
        name="",
        n_layers=n_layers,
        d_model=query_shape[1],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        layout=SEPARATE,
        layers=tuple(LayerTensors(layer, (pair.queries[layer], pair.keys[layer])) for layer in sorted(pair.queries)),
        guessed=(
            f"{found}, taken to be [out, in]: {len(pair.queries)} layers, {n_heads} query heads and {n_kv_heads} key "
            f"heads of {head_dim}"
        ),
    )


def _sections(config: Mapping[str, Any], depth: int = _DEEPEST) -> Iterator[Mapping[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, Mapping) and depth:
            yield from _sections(value, depth - 1)


def _one_shape(names: Mapping[int, str], tensors: Tensors, where: str) -> tuple[int, ...]:
    shapes = {tuple(tensors[name].shape): name for name in names.values()}
    if len(shapes) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for shape, name in shapes.items())
        raise RefusedError(f"{where}: layers differ in shape ({listed}), and why cannot be known")
    return next(iter(shapes))


def _fits(section: Mapping[str, Any], query: tuple[int, ...], key: tuple[int, ...], where: str) -> Iterator[Fit]:
    widths = list(_values(section, _WIDTHS, where))
    sizes, key_heads = list(_values(section, _SIZES, where)), list(_values(section, _KEY_HEADS, where))
    if widths and query[1] not in widths:
        return
    # Without a head size in the config, heads share the model's width: other query rows have a reason that is not
    # known, such as an output gate, or heads that the config does not count.
    if not sizes and query[0] != query[1]:
        return
    for n_heads in _values(section, _HEADS, where):
        if query[0] % n_heads:
            continue
        head_dim = query[0] // n_heads
        if (sizes and head_dim not in sizes) or key[0] % head_dim:
            continue
        n_kv_heads = key[0] // head_dim
        if n_heads % n_kv_heads == 0 and (not key_heads or n_kv_heads in key_heads):
            yield n_heads, n_kv_heads, head_dim


def _n_layers(section: Mapping[str, Any], last: int, where: str) -> int | None:
    """As many as the config says, or as there are; None where it says fewer than there are."""
    said = list(_values(section, _LAYERS, where))
    enough = [count for count in said if count > last]
    return min(enough, default=None if said else last + 1)


def _refuse_gaps(pair: Pair, n_layers: int, tensors: Tensors, where: str) -> None:
    """Blocks without attention have other tensors; a block with none at all is missing from the checkpoint."""
    prefix = pair.query.split("{layer}")[0]
    for layer in range(n_layers):
        if layer not in pair.queries and not any(name.startswith(f"{prefix}{layer}.") for name in tensors):
            raise InputError(
                f"{where}: the config says {n_layers} layers, but the checkpoint has no tensor {prefix}{layer}.*; it "
                f"holds {shown(tensors)}"
            )


def _values(section: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Iterator[int]:
    for key in keys:
        if section.get(key) is not None:
            yield positive(section, key, where)
