"""What attention adds to the residual stream, watched while a framework model runs.

What an attention module returns is not always what it adds: Gemma 2 and OLMo 2 put a norm behind it, Granite a factor,
DINOv2 a scale, and the modules of BERT and BLOOM return the sum with the stream. So what is followed is the result of
the module's last matrix, the output projection: through every operation that has no other part of the stream among its
operands, up to the first addition to a tensor of the stream's shape. What goes into that addition is what attention
adds, whatever stands between. In a parallel block (GPT-NeoX, Phi, Falcon, Cohere) that addition may be the one with the
MLP's result: the same value.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

from gatenorm_export.architectures import Modules
from gatenorm_export.errors import RefusedError

Visit = Callable[[int, Any, Any], None]
"""Called with layer, the stream that enters the block [windows, tokens, d_model], and what attention adds to it."""


def blocks_of(model: Any, modules: Modules, n_layers: int, name: str) -> list[Any]:
    """The blocks of a tower, from input to output.

    Raises:
        RefusedError: the framework model keeps them elsewhere, or has another number of them.
    """
    try:
        blocks = list(operator.attrgetter(modules.blocks)(model))
        for block in blocks:
            operator.attrgetter(modules.attention)(block)
    except AttributeError as error:
        raise RefusedError(f"{name}: the framework model has no {modules.blocks} with {modules.attention}") from error
    if len(blocks) != n_layers:
        raise RefusedError(f"{name}: the framework model has {len(blocks)} blocks, the checkpoint {n_layers}")
    return blocks


@contextlib.contextmanager
def watched(blocks: list[Any], attention: str, visit: Visit, name: str) -> Iterator[None]:
    """While the block runs, call ``visit`` for every layer of every forward pass of the model.

    ``attention`` is the attribute path from a block to its attention module; ``name`` is the model's, for messages.

    Raises:
        RefusedError: in a forward pass, the place where a layer's attention joins the stream was not found.
    """
    watch, mode = _watch(visit, name)
    hooks = []
    try:
        for layer, block in enumerate(blocks):
            hooks.append(block.register_forward_pre_hook(watch.enter(layer), with_kwargs=True))
            for module in operator.attrgetter(attention)(block).modules():
                if _is_matrix(module):
                    hooks.append(module.register_forward_hook(watch.projected))
            hooks.append(block.register_forward_hook(watch.leave))
        with mode:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_matrix(module: Any) -> bool:
    """Whether a module multiplies by one matrix: Linear, or the Conv1D of GPT-2; an embedding looks rows up."""
    from torch import nn

    weight = getattr(module, "weight", None)
    return (
        not any(module.children()) and not isinstance(module, nn.Embedding) and weight is not None and weight.ndim == 2
    )


class _Watch:
    """One layer at a time: its stream, the tensors that descend from its last projection, and what was added."""

    def __init__(self, visit: Visit, name: str) -> None:
        self._visit, self._name = visit, name
        self.layer: int | None = None
        self.stream: Any = None
        self.added: Any = None
        # Held, not only named: the identity of a freed tensor would be given to the next one.
        self.descendants: dict[int, Any] = {}

    def enter(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, inputs: Any, named: Any) -> None:
            self.layer = layer
            self.stream = inputs[0] if inputs else named["hidden_states"]
            self.added, self.descendants = None, {}

        return hook

    def projected(self, module: Any, inputs: Any, output: Any) -> None:
        """A projection of attention has run; the last one to do so is the output projection."""
        self.added, self.descendants = None, {id(output): output}

    def leave(self, module: Any, inputs: Any, output: Any) -> None:
        layer, stream, added = self.layer, self.stream, self.added
        self.layer, self.stream, self.added, self.descendants = None, None, None, {}
        if layer is None:
            return
        if added is None:
            raise RefusedError(f"{self._name}: where the attention of layer {layer} joins the stream was not found")
        self._visit(layer, stream, added.reshape(stream.shape))

    def before(self, additions: frozenset[Any], func: Any, args: Any, named: Any) -> None:
        """An operation is about to run: is it the addition?"""
        if self.added is not None or not self.descendants or func.overloadpacket not in additions:
            return
        summands = [value for value in args[:2] if getattr(value, "shape", None) is not None]
        if len(summands) < 2 or any(value.numel() != self.stream.numel() for value in summands):
            return
        ours = [id(value) in self.descendants for value in summands]
        if sum(ours) == 1:
            # A copy: the addition may be in place.
            factor = named.get("alpha", 1) if ours[1] else 1
            self.added = summands[ours.index(True)].clone() * factor

    def after(self, values: list[Any], results: list[Any]) -> None:
        """An operation has run: what it made of a descendant is one too."""
        if self.added is None and any(id(value) in self.descendants for value in values):
            self.descendants.update((id(result), result) for result in results)


def _watch(visit: Visit, name: str) -> tuple[_Watch, Any]:
    """The watch, and the mode that shows it every operation; a function, since the mode's class needs torch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    additions = frozenset({torch.ops.aten.add, torch.ops.aten.add_})
    watch = _Watch(visit, name)

    class Mode(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = kwargs or {}
            if not watch.descendants:
                return func(*args, **named)
            watch.before(additions, func, args, named)
            result = func(*args, **named)
            watch.after(_tensors(tree_leaves((args, named))), _tensors(tree_leaves(result)))
            return result

    def _tensors(leaves: list[Any]) -> list[Any]:
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    return watch, Mode()
