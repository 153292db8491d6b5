"""Kinds of models: what each stage does for a decoder, a text encoder, a vision tower, and speech.

A model is more than its kind says: which transformers class loads it, which of optimum's tasks exports it, and by
which measure its quality can be judged follow from its architecture's name, and for a checkpoint of several towers
from the one that is meant.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from gatenorm_export.errors import RefusedError
from gatenorm_export.graphs import GRAPH_NAME
from gatenorm_export.model_configs import ModelConfigs, configs_in
from gatenorm_export.records import ModelSpec

KindName = Literal["decoder", "encoder", "vision", "speech"]
Measure = Literal["text", "embeddings", "classes", "scores", "labels", "transcript"]

SPEECH_GRAPHS = {"encoder": "encoder_model.onnx", "decoder": "decoder_model_merged.onnx"}
"""The files of a speech model, under the names that optimum's clients look for; cross-attention is in the decoder's."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Where the parts that differ are found, as ``module:function``, imported when they are needed.

    ``graphs`` are the ONNX files of an export, by the tower that each holds; ``engines`` says whether TensorRT's
    profiles can be made for them, ``calibrates`` whether guard and repair can measure on them.
    """

    name: KindName
    faithfulness: str
    quality: str
    latency: str
    graphs: tuple[str, ...] = (GRAPH_NAME,)
    engines: bool = False
    calibrates: bool = False

    def function(self, which: Literal["faithfulness", "quality", "latency"]) -> Callable[..., Any]:
        """The function behind a row's entry."""
        module, name = str(getattr(self, which)).split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(f"gatenorm_export.comparing.{module}"), name)
        return found


KINDS: dict[KindName, Kind] = {
    "decoder": Kind(
        "decoder",
        "faithfulness:check_decoder",
        "quality:decoder_quality",
        "latency:decoder_latency",
        engines=True,
        calibrates=True,
    ),
    "encoder": Kind(
        "encoder", "forward:check_forward", "forward_quality:encoder_quality", "forward_latency:encoder_latency"
    ),
    "vision": Kind(
        "vision", "forward:check_forward", "forward_quality:vision_quality", "forward_latency:vision_latency"
    ),
    "speech": Kind(
        "speech",
        "speech:check_speech",
        "speech_quality:speech_quality",
        "forward_latency:speech_latency",
        graphs=tuple(SPEECH_GRAPHS.values()),
    ),
}


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """What one graph of a checkpoint is. ``tower`` is empty where the checkpoint has only one."""

    kind: Kind
    loader: str
    task: str
    measure: Measure
    tower: str = ""

    @property
    def graph(self) -> str:
        """The file name of the graph that holds the tower; of a speech model without one, the decoder's."""
        return SPEECH_GRAPHS[graph_tower(self.tower) or "decoder"] if self.kind.name == "speech" else GRAPH_NAME


_FAMILIES: tuple[tuple[str, KindName], ...] = (
    ("CLIPVision", "vision"),
    ("SiglipVision", "vision"),
    ("ViT", "vision"),
    ("Dinov2", "vision"),
    ("CLIPText", "encoder"),
    ("SiglipText", "encoder"),
    ("Bert", "encoder"),
    ("Roberta", "encoder"),
    ("XLMRoberta", "encoder"),
    ("DistilBert", "encoder"),
    ("ModernBert", "encoder"),
)
"""Start of an architecture's name -> its kind; what ends in ForCausalLM or LMHeadModel is a decoder before that."""

_HEADS: dict[str, tuple[str, Measure]] = {
    "Model": ("feature-extraction", "embeddings"),
    "ModelWithProjection": ("feature-extraction", "embeddings"),
    "ForMaskedLM": ("fill-mask", "classes"),
    "ForSequenceClassification": ("text-classification", "classes"),
    "ForTokenClassification": ("token-classification", "classes"),
    "ForImageClassification": ("image-classification", "classes"),
}
"""The rest of its name -> optimum's task, and the measure that fits what comes out; see :func:`measure_of_outputs`."""

_TOWERS: dict[tuple[str, str], str] = {
    ("CLIPModel", "vision"): "CLIPVisionModelWithProjection",
    ("CLIPModel", "text"): "CLIPTextModelWithProjection",
    ("SiglipModel", "vision"): "SiglipVisionModel",
    ("SiglipModel", "text"): "SiglipTextModel",
}
"""Checkpoints of two models side by side: the class that loads one of them alone, from the same folder."""

_SPEECH = "WhisperForConditionalGeneration"


def graph_tower(tower: str) -> str:
    """The tower whose graph holds ``tower``: cross-attention lies in the decoder."""
    return "decoder" if tower == "cross" else tower


def kind_of(spec: ModelSpec, tower: str = "") -> ModelKind:
    """What the graph of ``tower`` is.

    Raises:
        RefusedError: no such architecture or head is exported, or the tower has to be named.
    """
    architecture = spec.architecture
    if architecture == _SPEECH:
        return ModelKind(KINDS["speech"], _SPEECH, "automatic-speech-recognition-with-past", "transcript", tower)
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return ModelKind(KINDS["decoder"], "AutoModelForCausalLM", "text-generation-with-past", "text", tower)
    found = _headed(_TOWERS.get((architecture, tower), architecture), tower)
    if found is not None:
        return _narrowed(found, configs_in(Path(spec.path)))
    named = sorted(t for a, t in _TOWERS if a == architecture)
    if named:
        raise RefusedError(f"{spec.name}: {architecture} has several towers; choose one with --tower {'|'.join(named)}")
    raise RefusedError(
        f"{spec.name}: {architecture} can be scored, but is not exported: gatenorm exports decoders (…ForCausalLM), "
        f"{', '.join(sorted({start for start, _ in _FAMILIES}))} with the heads {', '.join(_HEADS)}, and Whisper"
    )


def _headed(loader: str, tower: str = "") -> ModelKind | None:
    """What a class of an encoder's or a vision tower's family is, by its head; None for every other class."""
    for start, name in _FAMILIES:
        head = _HEADS.get(loader.removeprefix(start)) if loader.startswith(start) else None
        if head is not None:
            return ModelKind(KINDS[name], loader, *head, tower)
    return None


def measure_of_outputs(n_outputs: int, problem: object = None) -> Measure:
    """What fits the outputs of a classifier: not every one of them chooses a class.

    One output is a score, and so are those of a regression; several labels at once are decisions, each on its own.
    ``problem`` is the config's ``problem_type``, by which transformers picks the loss; of models of tokens it has none.
    """
    if problem == "multi_label_classification":
        return "labels"
    return "scores" if n_outputs == 1 or problem == "regression" else "classes"


def _narrowed(kind: ModelKind, configs: ModelConfigs) -> ModelKind:
    """The same kind, with the measure that its config's labels ask for."""
    if not kind.task.endswith("-classification"):
        return kind
    labels = configs.config.get("id2label")
    n_outputs = len(labels) if isinstance(labels, dict) else configs.number("num_labels") or 2
    problem = None if kind.task == "token-classification" else configs.config.get("problem_type")
    return dataclasses.replace(kind, measure=measure_of_outputs(n_outputs, problem))


def refuse_calibration(spec: ModelSpec, kind: ModelKind, *, guard: bool, repair: bool) -> None:
    """Refuse guard and repair, by name, where nothing could be measured.

    Raises:
        RefusedError: one is asked for, of a model that is no decoder.
    """
    asked = "--guard" if guard else "--repair" if repair else None
    if asked is not None and not kind.kind.calibrates:
        raise RefusedError(
            f"{asked} is for decoders, whose perplexity it measures; {spec.architecture} is {_WORDS[kind.kind.name]}: "
            "leave it out"
        )


def require_decoder(spec: ModelSpec, verb: str) -> None:
    """Refuse a verb that measures next tokens, of a model that predicts none.

    Raises:
        RefusedError: the model is no decoder, or is not exported at all.
    """
    towers = {tower.name for tower in spec.towers}
    kinds = {kind_of(spec, tower).kind.name for tower in towers}
    if kinds != {"decoder"}:
        found = " and ".join(_WORDS[name] for name in sorted(kinds))
        raise RefusedError(f"{spec.name}: {verb} is for decoders, {spec.architecture} is {found}; use `gatenorm run`")


_WORDS: dict[KindName, str] = {
    "decoder": "a decoder",
    "encoder": "a text encoder",
    "vision": "a vision tower",
    "speech": "a speech model",
}


def no_engine_of(kind: ModelKind) -> str:
    """Why no TensorRT engine is built for this kind; empty where one can be."""
    return "" if kind.kind.engines else f"engines are built for decoders only, this is {_WORDS[kind.kind.name]}"


_VECTORS = {"last_hidden_state", "pooler_output", "text_embeds", "sentence_embedding"}
"""Outputs of text encoders. A decoder's logits have other names in some exporters, so a decoder is what has none."""


def kind_of_graph(graph: Path) -> ModelKind:
    """What a graph without a record is, by the names of its ends, and of logits by the config beside it.

    Raises:
        InputError: not an ONNX file, or a config that is no JSON object.
    """
    from gatenorm_export.graphs import load_graph

    found = load_graph(graph).graph
    inputs = {value.name for value in found.inputs}
    outputs = {value.name for value in found.outputs}
    if "input_features" in inputs:
        return ModelKind(KINDS["speech"], _SPEECH, "", "transcript", "encoder")
    if "encoder_hidden_states" in inputs:
        return ModelKind(KINDS["speech"], _SPEECH, "", "transcript", "decoder")
    if "pixel_values" in inputs:
        return ModelKind(KINDS["vision"], "", "", "classes" if "logits" in outputs else "embeddings")
    if outputs & _VECTORS:
        return ModelKind(KINDS["encoder"], "", "", "embeddings")
    # An encoder with a head of classes has the inputs and the output of a decoder that lost all its attention.
    configs = configs_in(graph.parent)
    found_kind = _headed(configs.architecture)
    return _narrowed(found_kind, configs) if found_kind else ModelKind(KINDS["decoder"], "", "", "text")
