"""A model that never had certain attention sublayers: what a pruned one is held against.

The decoder of the framework gets blocks of another kind. Blocks without attention are joined with the next block that
has it (those at the end with the one before), so that the model has as many blocks as attention sublayers, says so in
its config, and is exported like any other model of that many layers: by an exporter that knows nothing of pruning.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gatenorm_export.architectures import adapter_for
from gatenorm_export.benching.torch_surgery import remove_attention_modules
from gatenorm_export.errors import RefusedError
from gatenorm_export.exporting.optimum_graphs import optimum_export
from gatenorm_export.framework import load_framework_model
from gatenorm_export.records import ModelSpec
from gatenorm_export.silence import silenced


def export_native(spec: ModelSpec, layers: Sequence[int], folder: Path) -> Path:
    """Export the decoder of ``spec`` as a model without the attention of ``layers``; the path of the graph."""
    model, _ = load_framework_model(spec)
    native_model(model, spec.architecture, layers)
    folder.mkdir(parents=True, exist_ok=True)
    with silenced():
        optimum_export(model, folder, "text-generation-with-past")
    return folder / "model.onnx"


def native_model(model: Any, architecture: str, layers: Sequence[int]) -> Any:
    """Rebuild ``model`` in place.

    Raises:
        RefusedError: no attention would be left, which no exporter has a description of.
    """
    modules = adapter_for(architecture).tower()
    path, _, name = modules.blocks.rpartition(".")
    owner = operator.attrgetter(path)(model) if path else model
    kept = [layer for layer in range(len(getattr(owner, name))) if layer not in layers]
    if not kept:
        raise RefusedError("a native model needs one attention sublayer at least")
    remove_attention_modules(model, modules, layers)
    blocks = list(getattr(owner, name))
    groups: list[list[Any]] = [[]]
    for layer, block in enumerate(blocks):
        groups[-1].append(block)
        if layer in kept and layer != kept[-1]:
            groups.append([])
    joined = [
        group[0] if len(group) == 1 else _Joined(group, blocks[layer])
        for group, layer in zip(groups, kept, strict=True)
    ]
    setattr(owner, name, torch.nn.ModuleList(joined))
    config = model.config
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    return model


class _Joined(torch.nn.Module):  # type: ignore[misc]
    """Several blocks, one of which has attention, as one."""

    def __init__(self, parts: Sequence[Any], attending: Any) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        for name in ("attention_type", "is_sliding"):
            if hasattr(attending, name):
                setattr(self, name, getattr(attending, name))

    def forward(self, hidden_states: Any, *arguments: Any, **named: Any) -> Any:
        """One after the other; what the attending block returns beside its hidden states is passed on."""
        rest: tuple[Any, ...] | None = None
        for part in self.parts:
            result = part(hidden_states, *arguments, **named)
            hidden_states = result[0] if isinstance(result, tuple) else result
            if isinstance(result, tuple) and (rest is None or len(result) > 1):
                rest = result[1:]
        return hidden_states if rest is None else (hidden_states, *rest)
