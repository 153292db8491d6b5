"""What a model's config says that measuring needs to know: how far its positions reach, and whether it has experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` in a folder; empty where there is none that can be read.

    Nothing depends on it but which lengths are measured by default, and whether there is a roofline.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def longest_context(config: Mapping[str, Any]) -> int | None:
    """The longest context in tokens; None where the config does not say."""
    return next((value for value in _numbers(config, _LENGTHS)), None)


def mixture_of_experts(config: Mapping[str, Any]) -> str | None:
    """Why a mixture of experts has no roofline; None for any other model."""
    if any(value > 1 for value in _numbers(config, _EXPERTS)):
        return "a mixture of experts reads as many of its matrices as its tokens choose"
    return None


def _numbers(config: Mapping[str, Any], keys: tuple[str, ...]) -> list[int]:
    sections = [config, *(value for value in (config.get("text_config"),) if isinstance(value, dict))]
    return [section[key] for section in sections for key in keys if isinstance(section.get(key), int)]
