"""Attention taken out of a framework model for good: the module is gone, and with it its cache.

Where a block is an attention sublayer and an MLP one after the other, the norm and the sum of the attention go too, as
they do in a pruned graph. Whether that is so is not looked up but tried: the block without attention must give the same
numbers either way. Where it is not so (parallel branches, norms behind attention), the block keeps its own code and
gets a stand-in that returns zeros without computing anything.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from gatenorm_export.architectures.adapter import Modules
from gatenorm_export.errors import RefusedError


def remove_attention_modules(model: Any, modules: Modules, layers: Sequence[int]) -> tuple[str, ...]:
    """Take the attention of ``layers`` out of ``model``, in place; notes on what had to stay.

    The caches of the other layers are numbered anew, from 0 on without gaps, so that the framework's cache holds theirs
    alone.

    Raises:
        RefusedError: a layer does not exist, or attention and residual sum are one module in this family.
    """
    blocks = operator.attrgetter(modules.blocks)(model)
    beyond = [layer for layer in layers if not 0 <= layer < len(blocks)]
    if beyond:
        raise RefusedError(f"layer {beyond[0]} does not exist: the model has {len(blocks)} attention layers")
    if modules.projection_only:
        raise RefusedError(
            f"{type(model).__name__} adds the residual inside its attention module, which therefore cannot be skipped; "
            "measure its graphs with --backend ort-cpu or ort-cuda"
        )
    lengths = _output_lengths(model, [operator.attrgetter(modules.attention)(blocks[layer]) for layer in layers])
    kept_whole = []
    for layer, length in zip(layers, lengths, strict=True):
        block = blocks[layer]
        parent, _, name = modules.attention.rpartition(".")
        setattr(operator.attrgetter(parent)(block) if parent else block, name, _Nothing(length))
        short = _shortened(block)
        if short is None:
            kept_whole.append(layer)
        else:
            blocks[layer] = short
    number = 0
    for layer, block in enumerate(blocks):
        if layer not in layers:
            for module in block.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = number
            number += 1
    if not kept_whole:
        return ()
    return (
        f"in {len(kept_whole)} of {len(layers)} blocks the norm and the sum of the removed attention stay, with zeros: "
        "this family's block has no simpler form",
    )


class _Nothing(torch.nn.Module):  # type: ignore[misc]
    """In the place of an attention module: a zero that is spread over the shape and takes no memory."""

    def __init__(self, length: int | None) -> None:
        super().__init__()
        self._length = length

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Zeros like the hidden states, in the form that the block unpacks."""
        hidden = named["hidden_states"] if "hidden_states" in named else arguments[0]
        zeros = hidden.new_zeros(()).expand(hidden.shape)
        return zeros if self._length is None else (zeros, *[None] * (self._length - 1))


class _MlpBlock(torch.nn.Module):  # type: ignore[misc]
    """A pre-norm block that has only its MLP left."""

    def __init__(self, block: Any, norm: Any, mlp: Any) -> None:
        super().__init__()
        self.norm, self.mlp = norm, mlp
        self._tuple = False
        # Models with two kinds of attention ask every block which mask it wants.
        for name in ("attention_type", "is_sliding"):
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))

    def returning(self, tuples: bool) -> _MlpBlock:
        """The same, with its result as the first of a tuple where the block's own is."""
        self._tuple = tuples
        return self

    def forward(self, hidden_states: Any, *_: Any, **__: Any) -> Any:
        """Hidden states [batch, step, width] and what the MLP makes of them."""
        result = hidden_states + self.mlp(self.norm(hidden_states))
        return (result,) if self._tuple else result


_MLP_NORMS = ("post_attention_layernorm", "ln_2", "final_layer_norm", "ffn_norm")
_MLPS = ("mlp", "feed_forward", "ffn")


def _shortened(block: Any) -> Any | None:
    """The block without what only served its attention, if that computes the same; None if not."""
    norm = next((getattr(block, name) for name in _MLP_NORMS if hasattr(block, name)), None)
    mlp = next((getattr(block, name) for name in _MLPS if hasattr(block, name)), None)
    weight = next((parameter for parameter in norm.parameters()), None) if norm is not None else None
    if norm is None or mlp is None or weight is None:
        return None
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        hidden = torch.randn((1, 3, weight.shape[-1])).to(weight.device, weight.dtype)
        try:
            expected = block(hidden)
            short = _MlpBlock(block, norm, mlp).returning(isinstance(expected, tuple))
            found = short(hidden)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
            # A block that cannot be called by itself keeps its own code.
            return None
        first = [value[0] if isinstance(value, tuple) else value for value in (expected, found)]
        if isinstance(expected, tuple) and any(value is not None for value in expected[1:]):
            return None
        return short if torch.equal(*first) else None


def _output_lengths(model: Any, attentions: Sequence[Any]) -> list[int | None]:
    """Of how many values each attention module's output is a tuple; None where it is a tensor."""
    seen: dict[Any, Any] = {}
    handles = [
        attention.register_forward_hook(lambda module, inputs, output: seen.__setitem__(module, output))
        for attention in attentions
    ]
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [len(seen[module]) if isinstance(seen[module], tuple) else None for module in attentions]
