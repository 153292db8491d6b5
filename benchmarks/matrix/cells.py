"""The table of exporters, with late-bound targets, and which families each of them meets.

Two kinds of functions stand behind a target, both called with the row (``benchmarks.matrix.models.Family``) and an
existing empty folder to write to, and both return the path of the graph, or a dict of names to paths for several:

- an exporter of models, ``export(model, row, folder)``;
- where ``source`` names another exporter, a transformation of each of its graphs, ``transform(graph, row, folder)``;
  ``graph`` must stay as it is. With ``calibrated`` it gets ``base=PATH`` too, when ``graph`` has silenced layers: its
  own result for the unchanged model, beside which it finds the scales to use again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.matrix.models import FAMILIES, Family, Kind

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]


@dataclass(frozen=True)
class Exporter:
    """One row: a function, the major version of transformers it runs under, and the families it takes."""

    name: str
    target: str
    kinds: tuple[Kind, ...] = ("decoder",)
    transformers: int = 4
    source: str | None = None
    precision: Precision = "fp32"
    calibrated: bool = False
    left_padding: bool = True
    only: tuple[str, ...] = ()

    def takes(self, row: Family) -> bool:
        """Whether the exporter and the family make a cell."""
        return row.kind in self.kinds and self.transformers in row.versions and (not self.only or row.name in self.only)

    def function(self) -> Callable[..., Any]:
        """The function behind the target."""
        module, _, name = self.target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


_EVERY: tuple[Kind, ...] = ("decoder", "encoder", "vision")
_AT = "benchmarks.matrix.exporters"


def _derived(name: str, target: str, **rest: Any) -> tuple[Exporter, Exporter]:
    """A transformation of optimum's decoders, and the same one of its encoders."""
    at = f"{_AT}.{target}"
    return (
        Exporter(name, at, source="optimum", **rest),
        Exporter(f"{name}-encoder", at, ("encoder", "vision"), source="optimum-encoder", **rest),
    )


def _five(name: str, target: str, kinds: tuple[Kind, ...] = ("decoder",), **rest: Any) -> Exporter:
    return Exporter(name, f"{_AT}.{target}", kinds, transformers=5, **rest)


def _genai(name: str, function: str, **rest: Any) -> Exporter:
    """The builder's graphs count the mask's ones from the left: left padding is wrong before any pruning."""
    return _five(name, f"genai:{function}", left_padding=False, only=_GENAI, **rest)


# One decoder of each block type and attention, for exporters that would not differ on their relatives.
_BLOCKS = (
    "llama-gqa",
    "mistral",
    "qwen2",
    "qwen3-moe",
    "gemma2",
    "gemma3",
    "phi",
    "gpt2",
    "gptj",
    "gpt-neox",
    "gpt-bigcode",
    "opt",
    "bloom",
    "falcon-mqa",
    "mpt",
    "olmo2",
    "granite",
    "smollm3",
    "gpt-oss",
    "deepseek-v3",
    *(row.name for row in FAMILIES if row.kind != "decoder"),
)
_NOT_IN_OPTIMUM = (
    "mixtral",
    "falcon-new",
    "starcoder2",
    "cohere2",
    "granitemoe",
    "glm4",
    "exaone4",
    "deepseek-v2",
)
# What the builder says it supports, as far as there is a row for it.
_GENAI = (
    "llama-mha",
    "llama-gqa",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "nemotron",
    "olmo",
    "granite",
    "smollm3",
    "gpt-oss",
)

EXPORTERS: tuple[Exporter, ...] = (
    Exporter("optimum", f"{_AT}.optimum:with_past"),
    Exporter("optimum-no-past", f"{_AT}.optimum:without_past"),
    Exporter("optimum-encoder", f"{_AT}.optimum:encoder", ("encoder", "vision")),
    Exporter("optimum-speech", f"{_AT}.optimum:speech", ("speech",)),
    *_derived("ort-optimizer", "ort:optimizer"),
    *_derived("ort-optimizer-mha", "ort:optimizer_multi_head", only=("bert", "roberta", "distilbert")),
    *_derived("ort-extended", "ort:session_extended"),
    *_derived("ort-basic", "ort:session_basic", only=_BLOCKS),
    *_derived("fp16", "ort:float16", precision="fp16"),
    *_derived("bf16", "ort:bfloat16", precision="bf16", only=_BLOCKS),
    *_derived("qdq", "ort:qdq", precision="int8", calibrated=True, only=_BLOCKS),
    *_derived("dynamic-int8", "ort:dynamic_int8", precision="int8", only=_BLOCKS),
    *_derived("int4", "ort:int4", precision="int4", only=_BLOCKS),
    *_derived("stripped", "ort:stripped", only=_BLOCKS),
    *_derived("onnxsim", "simplify:onnxsim", transformers=5, only=_BLOCKS),
    *_derived("onnxslim", "simplify:onnxslim", transformers=5, only=_BLOCKS),
    _five("dynamo-18", "dynamo:export_18", _EVERY),
    _five("dynamo-18-no-past", "dynamo:export_18_no_past", only=_BLOCKS),
    _five("dynamo-23", "dynamo:export_23", _EVERY),
    _five("dynamo-23-no-past", "dynamo:export_23_no_past", only=_BLOCKS),
    _five("dynamo-24", "dynamo:export_24", _EVERY, only=_BLOCKS),
    Exporter("torchscript", f"{_AT}.dynamo:export_torchscript", only=_NOT_IN_OPTIMUM),
    _five("attention-op", "attention_op:export", only=_BLOCKS),
    _five("attention-op-3d", "attention_op:export_3d", only=_BLOCKS),
    _five("transformers5", "transformers5:export", _EVERY),
    _five("transformers5-no-past", "transformers5:export_no_past", only=_BLOCKS),
    _five("transformers5-ort", "transformers5:export_ort", _EVERY),
    _five("transformers5-ort-decode", "transformers5:export_ort_decode", only=_BLOCKS),
    _five("transformers5-ort-prefill", "transformers5:export_ort_prefill", only=_BLOCKS),
    _five("transformers5-cuda", "transformers5:export_cuda", _EVERY, only=_BLOCKS),
    _five("transformers5-webgpu", "transformers5:export_webgpu", _EVERY, only=_BLOCKS),
    _genai("genai", "export_fp32"),
    _genai("genai-unpacked", "export_fp32_unpacked"),
    _genai("genai-windowed", "export_fp32_windowed"),
    _genai("genai-cuda", "export_cuda_fp32"),
    _genai("genai-hidden-states", "export_hidden_states"),
    _genai("genai-fp16", "export_fp16", precision="fp16"),
    _genai("genai-cpu-fp16", "export_cpu_fp16", precision="fp16"),
    _genai("genai-bf16", "export_bf16", precision="bf16"),
    _genai("genai-int4", "export_int4", precision="int4"),
    _genai("genai-int4-qdq", "export_int4_qdq", precision="int4"),
    _genai("genai-int8", "export_int8", precision="int4"),
    _genai("genai-webgpu", "export_webgpu"),
    _genai("genai-dml", "export_dml", precision="fp16"),
)
NAMES: tuple[str, ...] = tuple(exporter.name for exporter in EXPORTERS)


def exporter(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        KeyError: no such exporter; the message lists those that exist.
    """
    for row in EXPORTERS:
        if row.name == name:
            return row
    raise KeyError(f"no exporter {name}; there are: {', '.join(NAMES)}")


def cells() -> tuple[tuple[Exporter, Family], ...]:
    """Every exporter with every family it takes."""
    return tuple((exporter, row) for exporter in EXPORTERS for row in FAMILIES if exporter.takes(row))
