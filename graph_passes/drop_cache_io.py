"""Take the cache tensors of removed sublayers out of the graph's signature: the one pass that changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graph_passes.operators import node_name
from graph_passes.sites import AttentionSite, NoMatch


class DropCacheIO(ir.passes.InPlacePass):
    """Drop the ``past`` inputs of the removed sites; rename the cache tensors of the kept ones by ``renames``.

    Runs after a sweep, when nothing reads the dropped inputs any more.
    """

    def __init__(
        self, removed: Sequence[AttentionSite], kept: Sequence[AttentionSite | NoMatch], renames: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._removed = tuple(removed)
        self._kept = tuple(kept)
        self._renames = dict(renames)

    def requires(self, model: ir.Model) -> None:
        """Nothing reads the inputs that go.

        Raises:
            PreconditionError: a reader is left; the text names it.
        """
        for site in self._removed:
            for past in site.cache.past:
                for node in past.consumers():
                    raise ir.passes.PreconditionError(f"{site}, {node_name(node)} still reads {past.name}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the inputs, then rename. Outputs went with the sweep."""
        for past in {past: None for site in self._removed for past in site.cache.past}:
            model.graph.inputs.remove(past)
        # An If that lost outputs is another node now; the sites' own values of it are renamed too, for who reports.
        values = dict.fromkeys((*model.graph.inputs, *model.graph.outputs))
        values.update((value, None) for site in self._kept for value in site.cache.present)
        renamed = {value: self._renames[value.name] for value in values if value.name in self._renames}
        # Names are swapped by way of names that nothing has, since one layer's new name may be another's old one.
        for index, value in enumerate(renamed):
            value.name = f"gatenorm/renamed_{index}"
        for value, name in renamed.items():
            value.name = name
        return ir.passes.PassResult(model, modified=bool(self._removed or renamed))
