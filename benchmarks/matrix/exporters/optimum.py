"""optimum-onnx: decoders with and without KV cache, encoders, and Whisper's four graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.matrix.exporters.quiet import quiet_export
from benchmarks.matrix.models import Family


def with_past(model: Any, row: Family, folder: Path) -> Path:
    """A decoder with KV cache, as ``optimum-cli export onnx`` makes it."""
    return _export(model, folder, "text-generation-with-past") / "model.onnx"


def without_past(model: Any, row: Family, folder: Path) -> Path:
    """A decoder without KV cache."""
    return _export(model, folder, "text-generation") / "model.onnx"


def encoder(model: Any, row: Family, folder: Path) -> Path:
    """A text or image encoder; the task follows from the model's class."""
    if row.kind == "vision":
        # Some of optimum's configurations ask for a preprocessor on disk, whichever; this one needs no image library.
        (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "WhisperFeatureExtractor"}')
        model.config._name_or_path = str(folder)
    return _export(model, folder, _TASKS.get(row.model_class)) / "model.onnx"


def speech(model: Any, row: Family, folder: Path) -> dict[str, Path]:
    """Whisper: encoder, decoder, decoder with past, and both decoders merged under an ``If``."""
    _export(
        model, folder, "automatic-speech-recognition-with-past", nb_max_frames=2 * model.config.max_source_positions
    )
    names = ("encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged")
    return {name: folder / f"{name}.onnx" for name in names}


# What optimum cannot infer from the class.
_TASKS = {"CLIPVisionModel": "feature-extraction", "SiglipVisionModel": "feature-extraction"}


def _export(model: Any, folder: Path, task: str | None, **shapes: int) -> Path:
    from optimum.exporters.onnx import onnx_export_from_model

    with quiet_export():
        # optimum's own validation only warns; the judge compares graphs with graphs.
        onnx_export_from_model(model, folder, task=task, do_validation=False, **shapes)
    return folder
