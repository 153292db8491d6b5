"""What a model's configs say that measuring needs to know: how far its positions reach, and whether it has experts."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.errors import InputError
from gatenorm_export.model_configs import ModelConfigs, configs_in


def configs_beside(graph: Path) -> ModelConfigs:
    """The configs in a graph's folder; empty where they cannot be read.

    Nothing depends on them but which lengths are measured by default, and whether there is a roofline.
    """
    try:
        return configs_in(graph.parent)
    except InputError:
        return ModelConfigs({}, {}, {})


def mixture_of_experts(configs: ModelConfigs) -> str | None:
    """Why a mixture of experts has no roofline; None for any other model."""
    if (configs.n_experts or 1) > 1:
        return "a mixture of experts reads as many of its matrices as its tokens choose"
    return None
