"""The models of ``benchmarks.gpu``: by dimensions with random weights, or a real checkpoint; in torch and as graphs."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_decoder import DATA_NAME, Dimensions, make_decoder
from gatenorm_export.architectures import adapter_for
from gatenorm_export.architectures.adapter import Modules
from gatenorm_export.benching.torch_eager import TORCH_TYPES, Precision
from gatenorm_export.progress import Progress

_BLOCK = 8 * 1024 * 1024
"""Numbers that the weights of a graph repeat: 16 MiB in half precision, more than any cache line or kernel tile."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """One model. ``dimensions`` None is the checkpoint ``name``; lengths and drops are what is measured by default."""

    name: str
    dimensions: Dimensions | None
    drops: tuple[int, ...]
    sequences: tuple[int, ...]
    minutes: float

    @property
    def longest(self) -> int:
        """The longest sequence that is measured by default."""
        return max(self.sequences)


SHAPES: dict[str, Shape] = {
    "llama-13b": Shape(
        "llama-13b", Dimensions(positions=8192), (0, 1, 4, 8, 12, 16), (512, 1024, 2048, 4096), minutes=9.0
    ),
    "smollm2": Shape("smollm2", None, (0, 1, 4, 8, 12, 16), (128, 512), minutes=10.0),
    "tiny": Shape(
        "tiny",
        Dimensions(n_layers=5, d_model=64, n_heads=4, d_ffn=128, vocabulary=256, positions=256),
        (0, 1, 2),
        (8, 24),
        minutes=0.2,
    ),
}
"""Name -> model. ``tiny`` is for trying whether everything runs."""


@dataclasses.dataclass(frozen=True)
class TorchSource:
    """How the torch backend gets at a shape's model."""

    counted: Any
    modules: Modules
    sha256: str | None
    make: Any


class ShapeModels:
    """The models of one shape; what is made is made once and lies in ``folder``."""

    def __init__(self, shape: Shape, folder: Path, progress: Progress) -> None:
        self.shape, self.folder, self._progress = shape, folder, progress

    @property
    def n_layers(self) -> int:
        """Attention sublayers of the unpruned model."""
        return self.shape.dimensions.n_layers if self.shape.dimensions is not None else int(self.spec.n_layers)

    @functools.cached_property
    def spec(self) -> Any:
        """The checkpoint, where the shape has one."""
        from gatenorm_export.sources import resolve_model

        return resolve_model(self.shape.name, progress=self._progress)

    def layers(self, drop: int) -> tuple[int, ...]:
        """What is removed: the lowest Gate-Norm scores of a checkpoint; of random weights, the deepest layers.

        Time depends on how many go, not on which.
        """
        if self.shape.dimensions is not None:
            return tuple(range(self.n_layers - drop, self.n_layers))
        return tuple(sorted(self._ranked[:drop]))

    @functools.cached_property
    def _ranked(self) -> tuple[int, ...]:
        from gatenorm_export.planning import DropRequest, rank_layers
        from gatenorm_export.scoring import score_model

        scores = score_model(self.spec, progress=self._progress)
        return tuple(rank_layers(scores, DropRequest(drop=self.n_layers)).layers)

    def graph(self, drop: int, progress: Progress) -> Path:
        """The ONNX graph without ``drop`` sublayers. Pruned graphs share the base's weights on disk."""
        base = self.folder / "base" / "model.onnx"
        if not base.is_file():
            with progress.task(f"make the graph of {self.shape.name}"):
                self._make_base(base)
        if drop == 0:
            return base
        pruned = base.with_name(f"without-{drop}.onnx")
        if not pruned.is_file():
            from gatenorm_export.pruning import prune_graph

            weights: Any = "compact" if self.shape.dimensions is None else "share"
            prune_graph(base, pruned, layers=self.layers(drop), weights=weights, progress=progress)
        return pruned

    def _make_base(self, base: Path) -> None:
        dimensions = self.shape.dimensions
        if dimensions is None:
            from gatenorm_export.exporting import export_model

            export_model(self.spec, base.parent)
            return
        make_decoder(dimensions, base.parent)
        fill_with_random(base.parent / DATA_NAME)

    def torch_source(self, where: str, precision: Precision) -> TorchSource:
        """The framework model, made on the device that it runs on; a checkpoint is read once and copied."""
        import torch
        import transformers

        if self.shape.dimensions is None:
            from gatenorm_export.framework import load_framework_model

            master, _ = load_framework_model(self.spec)
            master = master.to(where, getattr(torch, TORCH_TYPES[precision]))
            modules = adapter_for(self.spec.architecture).tower()
            return TorchSource(master, modules, self.spec.digest, functools.partial(copy.deepcopy, master))
        config = llama_config(self.shape.dimensions)
        with torch.device("meta"):
            counted = transformers.LlamaForCausalLM(config)
        make = functools.partial(_random_llama, config, where, TORCH_TYPES[precision])
        return TorchSource(counted, adapter_for("LlamaForCausalLM").tower(), None, make)


def llama_config(dimensions: Dimensions) -> Any:
    """The transformers config of these dimensions."""
    import transformers

    return transformers.LlamaConfig(
        num_hidden_layers=dimensions.n_layers,
        hidden_size=dimensions.d_model,
        num_attention_heads=dimensions.n_heads,
        num_key_value_heads=dimensions.n_heads,
        intermediate_size=dimensions.d_ffn,
        vocab_size=dimensions.vocabulary,
        max_position_embeddings=dimensions.positions,
    )


def _random_llama(config: Any, where: str, dtype: str) -> Any:
    """A LLaMA of random weights, allocated and filled on the device; the host holds none of it."""
    import torch
    import transformers

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(where):
            torch.manual_seed(0)
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def fill_with_random(path: Path, *, seed: int = 0) -> None:
    """Write normal numbers in half precision over a whole file: a GPU multiplies zeros with less power, hence faster.

    0.02 is the scale that transformers initialises LLaMA with; it keeps half precision from overflowing.
    """
    block = (0.02 * np.random.default_rng(seed).standard_normal(_BLOCK, dtype=np.float32)).astype(np.float16).tobytes()
    size = path.stat().st_size
    with path.open("r+b") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def file_bytes(dimensions: Dimensions | None, drops: Sequence[int]) -> int:
    """Bytes of disk that the graphs of a shape take; pruned ones of random weights share the base's."""
    if dimensions is None:
        return 600_000_000 * (1 + len(drops))
    d, layers = dimensions.d_model, dimensions.n_layers
    return 2 * (layers * (4 * d * d + 3 * d * dimensions.d_ffn) + 2 * dimensions.vocabulary * d)
