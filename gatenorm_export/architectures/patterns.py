"""Names that a user gives: which tensors are the query and the key weights of a model."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class NamePatterns:
    """Stored names of the query and the key weight, with a ``{layer}`` field where the number of the layer stands."""

    query: str
    key: str
