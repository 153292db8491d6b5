"""onnxruntime-genai's description of a model folder, made to fit a pruned graph. Pure: JSON objects in and out.

What genai 0.18 reads: the caches of its default kind are found by matching the graph's inputs with a pattern such as
``past_key_values.%d.key``, gaps and all. Windowed and paged caches and the profiles for TensorRT-RTX are counted
0..num_hidden_layers-1 instead. ``sliding_window.layers`` holds the numbers that the names hold.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gatenorm_export.errors import InputError, RefusedError

GENAI_CONFIG = "genai_config.json"
_KEY_PATTERN = "past_key_values.%d.key"


@dataclasses.dataclass(frozen=True)
class CacheNames:
    """The names of each layer's ``past`` inputs in the source and, of the layers that stay, in the pruned graph."""

    before: Mapping[int, tuple[str, ...]]
    after: Mapping[int, tuple[str, ...]]


def rewrite_genai_config(config: dict[str, Any], graph: str, pruned: str, names: CacheNames) -> dict[str, Any] | None:
    """The config for a folder that holds ``pruned`` in place of ``graph``; None if it does not name ``graph`` at all.

    Raises:
        InputError: the config does not describe this graph.
        RefusedError: genai cannot run this kind of model with these layers gone; the text names the setting.
    """
    config = copy.deepcopy(config)
    sections = [section for section in _sections(config) if section.get("filename") == graph]
    if not sections:
        return None
    for section in sections:
        section["filename"] = pruned
    _check_form(config)
    decoder = config.get("model", {}).get("decoder", {})
    if any(section is not decoder for section in sections) or not names.before:
        return config
    before, after = _numbers(names.before, decoder), _numbers(names.after, decoder)
    if before == after:
        return config
    _check_supported(config, decoder, set(after.values()))
    if decoder.get("num_hidden_layers") == len(before) and _is_dense(after) and not _has_cross_caches(decoder):
        decoder["num_hidden_layers"] = len(after)
    window = decoder.get("sliding_window") or {}
    if window.get("layers"):
        renumbered = {number: after.get(layer) for layer, number in before.items()}
        layers = [renumbered.get(number, number) for number in window["layers"]]
        window["layers"] = [number for number in layers if number is not None]
        if not window["layers"]:
            # An empty list would mean that every layer slides.
            del decoder["sliding_window"]
    return config


def _check_form(config: dict[str, Any]) -> None:
    """Refuse values of another type than genai reads, where they are read here too."""
    model, engine = config.get("model", {}), config.get("engine", {})
    decoder = model.get("decoder", {}) if isinstance(model, dict) else {}
    inputs = decoder.get("inputs", {}) if isinstance(decoder, dict) else {}
    window = decoder.get("sliding_window") if isinstance(decoder, dict) else None
    objects = {"model": model, "engine": engine, "model.decoder": decoder, "model.decoder.inputs": inputs}
    objects["model.decoder.sliding_window"] = {} if window is None else window
    wrong = next((name for name, value in objects.items() if not isinstance(value, dict)), None)
    if wrong is not None:
        raise InputError(f"{GENAI_CONFIG}: {wrong} is no object; repair it, or name a .onnx file as output")
    pattern = inputs.get("past_key_names", _KEY_PATTERN)
    if not isinstance(pattern, str) or not pattern:
        raise InputError(f"{GENAI_CONFIG}: model.decoder.inputs.past_key_names is no text; repair it")
    layers = window.get("layers", []) if window else []
    if not isinstance(layers, list) or any(type(layer) is not int for layer in layers):
        raise InputError(f"{GENAI_CONFIG}: model.decoder.sliding_window.layers is no list of layers; repair it")


def other_files(config: dict[str, Any], pruned: str) -> tuple[str, ...]:
    """The files that the config names besides the pruned graph: other graphs, adapters, processor settings."""
    found = {
        str(value)
        for section in _sections(config)
        for key, value in section.items()
        if key in {"filename", "config_filename", "adapter_filename"} and value and value != pruned
    }
    return tuple(sorted(found))


def _sections(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _sections(inner)


def _numbers(names: Mapping[int, tuple[str, ...]], decoder: dict[str, Any]) -> dict[int, int]:
    """The number that genai reads from each layer's cache name."""
    pattern = decoder.get("inputs", {}).get("past_key_names") or _KEY_PATTERN
    prefix, _, suffix = pattern.partition("%d")
    expression = re.compile(rf"{re.escape(prefix)}(\d+){re.escape(suffix)}")
    found: dict[int, int] = {}
    for layer, past in names.items():
        numbers = [int(match[1]) for match in map(expression.fullmatch, past) if match]
        if past and not numbers:
            raise InputError(
                f"{GENAI_CONFIG}: names the caches {pattern}, but layer {layer} of the graph has {past[0]}; "
                "correct model.decoder.inputs.past_key_names, or name a .onnx file as output"
            )
        found.update((layer, number) for number in numbers[:1])
    return found


def _is_dense(numbers: Mapping[int, int]) -> bool:
    return sorted(numbers.values()) == list(range(len(numbers)))


def _has_cross_caches(decoder: dict[str, Any]) -> bool:
    """Of an encoder-decoder, num_hidden_layers counts the cross-attention caches too."""
    return bool(decoder.get("inputs", {}).get("cross_past_key_names"))


def _check_supported(config: dict[str, Any], decoder: dict[str, Any], numbers: set[int]) -> None:
    for setting, why in (
        ("layer_types", "genai gives each layer either a convolution's state or a KV cache, and has no third kind"),
        ("state_groups", "genai counts the layers of each kind of state"),
        ("shared_initializers", "another graph reads this graph's weights at fixed places"),
    ):
        if decoder.get(setting):
            raise RefusedError(
                f"{GENAI_CONFIG}: model.decoder.{setting}: {why}; name a .onnx file as output to prune the graph alone"
            )
    counting = [
        ("model.decoder.sliding_window.slide_key_value_cache", _slides_cache(decoder)),
        ("engine.dynamic_batching", bool(config.get("engine", {}).get("dynamic_batching"))),
        ("NvTensorRtRtx", "NvTensorRtRtx" in str(decoder.get("session_options", {}))),
    ]
    for setting, present in counting:
        if present and numbers != set(range(len(numbers))):
            raise RefusedError(
                f"{GENAI_CONFIG}: with {setting} genai counts caches from 0 without gaps; use --kv-names dense"
            )


def _slides_cache(decoder: dict[str, Any]) -> bool:
    window = decoder.get("sliding_window")
    return window is not None and window.get("slide_key_value_cache", True)
