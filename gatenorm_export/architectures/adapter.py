"""What gatenorm needs to know of a model family: names, and nothing that can be read from a checkpoint."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A family of decoders with separate query and key projections.

    Tensor names have a ``{layer}`` field; ``blocks`` is an attribute path from the framework model to its list of
    blocks, ``attention`` one from a block to its attention module, ``down`` one to the last Linear of its MLP.
    """

    family: str
    query: str
    key: str
    gguf_query: str
    gguf_key: str
    blocks: str
    attention: str
    down: str
