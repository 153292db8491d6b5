"""What takes the place of an attention branch in the framework model: nothing, or what a repair's stand-in computes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gatenorm_export.architectures import Modules

if TYPE_CHECKING:
    from gatenorm_export.repairs import LayerRepair


def hook_branch(block: Any, modules: Modules, repair: LayerRepair | None) -> Iterator[Any]:
    """Register hooks on one block so that attention adds zeros, or the stand-in's result; yield the hooks' handles.

    A repair was fitted to what joins the residual stream, so it takes the place of a norm behind attention as well, and
    is not multiplied by a block's factor.
    """
    attention = operator.attrgetter(modules.attention)(block)
    yield attention.register_forward_hook(_zeros)
    if repair is None or repair.bias is None:
        return
    # What a stand-in reads is what the attention module is given; a bare projection is given something else.
    path = modules.attention.rpartition(".")[0] if modules.projection_only else modules.attention
    stand_in = _StandIn(repair, getattr(block, modules.factor) if modules.factor else 1.0)
    yield operator.attrgetter(path)(block).register_forward_pre_hook(stand_in.read, with_kwargs=True)
    joins = operator.attrgetter(modules.norm_behind)(block) if modules.norm_behind else attention
    yield joins.register_forward_hook(stand_in.write)


def _zeros(module: Any, inputs: Any, output: Any) -> Any:
    import torch

    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


class _StandIn:
    """A stand-in's two hooks: one keeps what attention reads, the other puts its result where attention's was."""

    def __init__(self, repair: LayerRepair, factor: float) -> None:
        self._repair = repair
        self._factor = factor
        self._stream: Any = None

    def read(self, module: Any, inputs: Any, named: Any) -> None:
        self._stream = inputs[0] if inputs else named["hidden_states"]

    def write(self, module: Any, inputs: Any, output: Any) -> Any:
        import torch

        first = output[0] if isinstance(output, tuple) else output
        assert self._repair.bias is not None
        value = torch.zeros_like(first)
        if self._repair.factors:
            value = self._stream
            for matrix in self._repair.factors:
                value = value @ torch.from_numpy(matrix).to(first.dtype)
        result = (value + torch.from_numpy(self._repair.bias).to(first.dtype)) / self._factor
        return (result, *output[1:]) if isinstance(output, tuple) else result
