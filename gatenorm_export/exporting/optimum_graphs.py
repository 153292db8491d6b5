"""Graphs through optimum: by its own description of a model, or by that of a relative where it has none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gatenorm_export.errors import needs
from gatenorm_export.exporting.experts import traceable_experts

_RELATIVES: dict[str, str] = {
    "mixtral": "mistral",
    "qwen2_moe": "qwen2",
    "granitemoe": "granite",
    "olmoe": "olmo2",
    "glm4_moe": "glm",
    "deepseek_v2": "deepseek_v3",
    "starcoder2": "llama",
    "glm4": "glm",
    "exaone4": "llama",
    "cohere2": "cohere",
    "olmo3": "olmo2",
}
"""Model types that optimum has no description of -> one whose inputs and cache tensors are the same. A wrong row cannot
go unnoticed: every export is held against the framework model before it is kept."""


_TEXT, _IMAGE = ("input_ids", "attention_mask"), ("pixel_values",)
_TOWERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CLIPTextModel": (_TEXT, ("last_hidden_state", "pooler_output")),
    "CLIPTextModelWithProjection": (_TEXT, ("text_embeds", "last_hidden_state")),
    "CLIPVisionModelWithProjection": (_IMAGE, ("image_embeds", "last_hidden_state")),
    "SiglipTextModel": (_TEXT, ("last_hidden_state", "pooler_output")),
}
"""One tower of a model of two, which optimum only exports whole or under other names: inputs, and outputs in order."""


def optimum_export(model: Any, folder: Path, task: str, **shapes: int) -> None:
    """Write the ONNX graphs of ``task`` and the configs into ``folder``.

    ``shapes`` are optimum's sizes of the traced example, where a model fixes one (the frames of Whisper's encoder).

    Raises:
        MissingPartError: optimum is not installed.
        Exception: whatever optimum, transformers or torch raise for a model that they do not take.
    """
    with needs("export", "exporting"):
        from optimum.exporters.onnx import onnx_export_from_model
    options: dict[str, Any] = dict(shapes)
    if type(model).__name__ in _TOWERS:
        options["custom_onnx_configs"] = {"model": _tower_description(model)}
    relative = _RELATIVES.get(model.config.model_type)
    if relative is not None and not _described(model.config.model_type):
        options["custom_onnx_configs"] = {"model": _description(relative, task, model.config)}
    with traceable_experts(model), _with_preprocessor(model):
        # optimum's own validation only warns, with a tolerance that fp32 does not keep over thirty layers.
        onnx_export_from_model(model, folder, task=task, do_validation=False, device="cpu", **options)


def _described(model_type: str) -> bool:
    import optimum.exporters.onnx.model_configs  # noqa: F401  (fills the table that is asked next)
    from optimum.exporters.tasks import TasksManager

    return "onnx" in TasksManager._SUPPORTED_MODEL_TYPE.get(model_type, {})


def _description(relative: str, task: str, config: Any) -> Any:
    from optimum.exporters.tasks import TasksManager

    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=relative, task=task.removesuffix("-with-past"), library_name="transformers"
    )
    with_past = task.endswith("-with-past")
    return constructor(config, use_past=with_past, use_past_in_inputs=with_past)


def _tower_description(model: Any) -> Any:
    from optimum.exporters.onnx.config import TextEncoderOnnxConfig, VisionOnnxConfig
    from optimum.utils import NormalizedTextConfig, NormalizedVisionConfig

    taken, given = _TOWERS[type(model).__name__]
    axes = {
        "input_ids": {0: "batch_size", 1: "sequence_length"},
        "attention_mask": {0: "batch_size", 1: "sequence_length"},
        "pixel_values": {0: "batch_size"},
        "last_hidden_state": {0: "batch_size", 1: "sequence_length"} if taken is _TEXT else {0: "batch_size"},
    }
    base = TextEncoderOnnxConfig if taken is _TEXT else VisionOnnxConfig

    class Description(base):  # type: ignore[misc, valid-type]
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig if taken is _TEXT else NormalizedVisionConfig
        DEFAULT_ONNX_OPSET = 18

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {name: axes[name] for name in taken}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {name: axes.get(name, {0: "batch_size"}) for name in given}

    return Description(model.config, task="feature-extraction")


@contextlib.contextmanager
def _with_preprocessor(model: Any) -> Iterator[None]:
    """optimum's description of DINOv2 takes the last preprocessor it finds at the model's path, and fails on none.

    It only asks it for a crop size, which the one that is put there has not: the image size of the config counts then.
    """
    if model.config.model_type != "dinov2":
        yield
        return
    before = model.config._name_or_path
    with TemporaryDirectory(prefix="gatenorm.") as folder:
        (Path(folder) / "preprocessor_config.json").write_text('{"feature_extractor_type": "WhisperFeatureExtractor"}')
        model.config._name_or_path = folder
        try:
            yield
        finally:
            model.config._name_or_path = before
