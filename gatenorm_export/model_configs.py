"""What config.json, generation_config.json and genai_config.json tell of a model, read as plain JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gatenorm_export.genai_config import GENAI_CONFIG
from gatenorm_export.records import ModelSpec
from gatenorm_export.small_files import present_inside, read_object

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
CONFIG_NAMES = (CONFIG, GENERATION_CONFIG, GENAI_CONFIG)

# A size has another key in some families: GPT-2, GPT-J, MPT, BLOOM and their like.
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "context_length",
)
_TABLES = {
    "gpt2": 1024,
    "gpt_neo": 2048,
    "gptj": 2048,
    "codegen": 2048,
    "gpt_bigcode": 1024,
    "opt": 2048,
    "mpt": 2048,
}
"""Model types whose graphs fail beyond their last position, which is learned or in a table made when the model was
built -> how many positions there are where a config does not say."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_WIDTH = ("hidden_size", "n_embd", "d_model", "n_embed")


@dataclasses.dataclass(frozen=True)
class ModelConfigs:
    """The three files as objects, each empty where it is not there."""

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    genai: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """The class of the model, such as LlamaForCausalLM; empty where no config names one."""
        named = self.config.get("architectures")
        return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model was made for."""
        return self.number(*_POSITIONS)

    @property
    def table_of_positions(self) -> int | None:
        """How many positions a decoder has where they are a table, which nothing can be read beyond.

        None where they are computed, so that :attr:`max_positions` is only what the model was made for, or where
        nothing tells.
        """
        family = self.config.get("model_type")
        if isinstance(family, str) and family in _TABLES:
            return self.max_positions or _TABLES[family]
        # onnxruntime-genai's builder writes tables of rotary angles, whatever the family.
        return self.max_positions if self.genai else None

    @property
    def vocab_size(self) -> int | None:
        """How many tokens there are."""
        return self.number("vocab_size")

    @property
    def counted_layers(self) -> int | None:
        """Layers as config.json alone counts them, whatever number it says."""
        places = (self.config, _section(self.config, "text_config"))
        return next((place[name] for place in places for name in _LAYERS if isinstance(place.get(name), int)), None)

    @property
    def n_heads(self) -> int | None:
        """Query heads."""
        return self.number(*_HEADS)

    @property
    def n_experts(self) -> int | None:
        """How many MLPs each token chooses from; None, or 1, where there is no choice."""
        return self.number(*_EXPERTS)

    @property
    def width(self) -> int | None:
        """The width of the residual stream."""
        return self.number(*_WIDTH)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a sequence; what says how to generate outranks what says how the model was made."""
        found = self._first("eos_token_id")
        listed = found if isinstance(found, list) else [found]
        return tuple(dict.fromkeys(token for token in map(_token, listed) if token is not None))

    def token(self, name: str) -> int | None:
        """One special token, such as ``bos_token_id``."""
        return _token(self._first(name))

    @property
    def image_size(self) -> tuple[int | None, int | None]:
        """Height and width of an image."""
        found = self._first("image_size")
        size = found if isinstance(found, list) and len(found) == 2 else [found, found]
        height, width = (length if isinstance(length, int) and 0 < length < 2**16 else None for length in size)
        return height, width

    def number(self, *names: str) -> int | None:
        """The first of these that is a number above 0."""
        for place in self._places():
            for name in names:
                value = place.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
                    return value
        return None

    def _first(self, name: str) -> Any:
        return next((place[name] for place in self._places() if place.get(name) is not None), None)

    def _places(self) -> Iterator[Mapping[str, Any]]:
        yield self.generation
        yield self.config
        # A part of a model of several has its sizes in a section of its own.
        yield _section(self.config, "text_config")
        yield _section(self.config, "vision_config")
        model = _section(self.genai, "model")
        yield model
        yield _section(model, "decoder")


def read_configs(files: Mapping[str, Path]) -> ModelConfigs:
    """Read what is there of the three files.

    Raises:
        InputError: one is no JSON object.
    """
    return ModelConfigs(*(_read(files.get(name)) for name in CONFIG_NAMES))


def configs_in(folder: Path) -> ModelConfigs:
    """Those of a folder that are there.

    Raises:
        InputError: one is no JSON object, or a link that leads out of the folder.
    """
    return read_configs(present_inside(folder, CONFIG_NAMES))


def configs_of(folder: Path, spec: ModelSpec | None) -> ModelConfigs:
    """Those beside a graph, or where there is no config.json the checkpoint's.

    Raises:
        InputError: one is no JSON object.
    """
    if (folder / CONFIG).is_file() or spec is None or spec.source == "gguf":
        return configs_in(folder)
    return configs_in(Path(spec.path))


def configs_from(config: Any) -> ModelConfigs:
    """Those of a transformers config, the family's own defaults included."""
    return ModelConfigs(config.to_dict(), {}, {})


def _read(path: Path | None) -> Mapping[str, Any]:
    return read_object(path) if path is not None else {}


def _section(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> int | None:
    # genai writes -1 where there is none.
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
