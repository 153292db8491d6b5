"""What gatenorm needs to know of a model family, as data: names of tensors, of config keys, and of modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gatenorm_export.architectures.layouts import SEPARATE
from gatenorm_export.architectures.tower import Layout
from gatenorm_export.errors import RefusedError


@dataclasses.dataclass(frozen=True)
class DimKeys:
    """Under which config keys a family keeps its dimensions.

    ``n_kv_heads`` absent, or null in the config, means as many as query heads; ``head_dim`` likewise means
    d_model / n_heads. ``section`` is a nested config such as text_config. ``defaults`` holds, by key, what transformers
    leaves out of a config because it is the class's default: of nested configs, and where a head size of its own is
    meant. ``aliases`` (other name, key) are names that transformers reads in place of a key. ``kv_heads`` and
    ``head_size`` are numbers, where a family's variant fixes them.
    """

    n_layers: str = "num_hidden_layers"
    d_model: str = "hidden_size"
    n_heads: str = "num_attention_heads"
    n_kv_heads: str | None = None
    head_dim: str | None = None
    section: str | None = None
    defaults: tuple[tuple[str, int], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    kv_heads: int | None = None
    head_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Modules:
    """Where a framework model keeps the sublayers of a tower, as attribute paths.

    ``blocks`` leads from the model to its list of blocks. ``attention`` leads from a block to the module whose output
    is all that attention adds to the residual stream: as a rule the attention module, but only its output projection
    (``projection_only``) where that module adds the residual itself, as BERT's and BLOOM's do; what goes into such a
    module is not what goes into the sublayer. ``down`` leads from a block to the last matrix of its MLP: None where
    there is not one such matrix, as in a mixture of experts; ``down_transposed`` where it is kept [in, out] (GPT-2).

    Between that output and the stream may stand a norm, to which ``norm_behind`` leads from a block, or a factor, which
    the attribute ``factor`` of a block holds (Granite). Both leave nothing as nothing.
    """

    blocks: str
    attention: str
    down: str | None
    projection_only: bool = False
    down_transposed: bool = False
    norm_behind: str | None = None
    factor: str | None = None


@dataclasses.dataclass(frozen=True)
class TowerRow:
    """One stack of attention sublayers of a family.

    ``tensors`` and ``norm`` are the ends of stored names, with a ``{layer}`` field: what stands before them differs
    from head class to head class ("model.", "bert.", nothing) and is found in the checkpoint. ``under`` is a part of it
    that must be there, where a checkpoint holds several stacks whose names end alike. ``norm`` lists alternatives;
    layers before ``normed_from`` read a stream that is normed already.
    ``modules`` are paths from the base model.
    """

    tensors: tuple[str, ...]
    modules: Modules
    name: str = ""
    dims: DimKeys = DimKeys()
    layout: Layout = SEPARATE
    norm: tuple[str, ...] = ()
    normed_from: int = 0
    norm_offset: float = 0.0
    under: str | None = None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One architecture: its towers, and the attribute ``prefix`` under which its class keeps the base model.

    ``variant`` changes a row by what a config says (its last argument names the config in messages), for a family that
    has several layouts.
    """

    family: str
    towers: tuple[TowerRow, ...]
    prefix: str = ""
    variant: Callable[[TowerRow, Mapping[str, Any], str], TowerRow] | None = None

    def under(self, prefix: str) -> Adapter:
        """The same for a class that keeps the base model in ``prefix``."""
        return dataclasses.replace(self, prefix=prefix)

    def tower(self, name: str = "") -> Modules:
        """Where the framework model of this architecture keeps a tower; paths start at the model.

        Raises:
            RefusedError: there is no such tower; the text lists those that exist.
        """
        for row in self.towers:
            if row.name == name:
                blocks = f"{self.prefix}.{row.modules.blocks}" if self.prefix else row.modules.blocks
                return dataclasses.replace(row.modules, blocks=blocks)
        listed = ", ".join(row.name or "a single one, without a name" for row in self.towers)
        raise RefusedError(f"{self.family}: has no tower {name!r}; it has {listed}")

    @property
    def blocks(self) -> str:
        """Attribute path from the model to its list of blocks, for a model with one tower."""
        return self.tower().blocks

    @property
    def attention(self) -> str:
        """Attribute path from a block to its attention module, for a model with one tower."""
        return self.tower().attention

    @property
    def down(self) -> str:
        """Attribute path from a block to the last Linear of its MLP, for a model with one tower.

        Raises:
            RefusedError: there is not one such Linear.
        """
        modules = self.tower()
        if modules.down is None or modules.down_transposed:
            raise RefusedError(f"{self.family}: its MLP has no single last Linear that could be repaired")
        return modules.down
