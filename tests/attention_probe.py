"""Query and key weights as the framework's own attention uses them, whatever the family's layout.

An attention module is fed one-hot rows, and what reaches its dot product is caught: the image of each input dimension,
minus that of zero (the biases). The sequence is one position long where there is a rotary embedding, which turns
nothing at position 0; norms of queries and keys, also those between low-rank factors, are taken out first. None of
gatenorm's splitters takes part.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from gatenorm_export.architectures import Modules

_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.baddbmm, torch.Tensor.baddbmm)

_FED = {"hidden_states", "key_value_states", "query", "key", "value"}


class _Catch(TorchFunctionMode):
    """Remembers the operands of the first dot product of queries and keys while it is armed."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.armed = False
        self.caught: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.armed:
            pair = None
            if func is torch.nn.functional.scaled_dot_product_attention:
                pair = (*args, *kwargs.values())[:2]
            elif func in _PRODUCTS:
                operands = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)][-2:]
                # A product without a batch is the rotary embedding's.
                if all(value.dim() >= 3 and value.numel() % self.batch == 0 for value in operands):
                    pair = (operands[0], operands[1].transpose(-1, -2))
            if pair is not None:
                self.caught.append((pair[0].detach(), pair[1].detach()))
                self.armed = False
        return func(*args, **kwargs)


def query_and_key(model: Any, modules: Modules, inputs: dict[str, Any], d_model: int) -> list[np.ndarray]:
    """For each block, (query, key) as one array [2, heads, head_dim, d_model] in float64, key heads repeated."""
    blocks = operator.attrgetter(modules.blocks)(model)
    # Only an output projection may be what gatenorm silences; the probe needs the whole module.
    path = modules.attention.split(".")[0] if modules.projection_only else modules.attention
    attentions = [operator.attrgetter(path)(block) for block in blocks]
    for attention in attentions:
        for name, module in list(attention.named_modules()):
            if name and type(module).__name__.endswith(("Norm", "Norm2d", "LayerNormPerHead")):
                parent = attention.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], torch.nn.Identity())
    one_hot = torch.cat([torch.eye(d_model), torch.zeros(1, d_model)]).double()
    catch, weights = _Catch(d_model + 1), []

    def feed(module: Any, args: Any, kwargs: Any) -> Any:
        catch.armed = True
        args = tuple(_fed(value, one_hot) for value in args)
        fed = {name: _fed(value, one_hot) if name in _FED else value for name, value in kwargs.items()}
        return args, fed

    with _hooked(attentions, feed), catch, torch.no_grad():
        model.double()(**inputs)
    assert len(catch.caught) == len(attentions)
    for query, key in catch.caught:
        q, k = (value.reshape(d_model + 1, -1, *value.shape[-2:])[:, :, 0].double() for value in (query, key))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        weights.append(np.stack([(value[:-1] - value[-1:]).permute(1, 2, 0).numpy() for value in (q, k)]))
    return weights


def gate_norms(weights: np.ndarray) -> tuple[float, float]:
    """The definition, word for word: (||sum_h Wq_h Wk_h^T||_F, sqrt(sum_h ||Wq_h Wk_h^T||_F^2))."""
    gates = [query.T @ key for query, key in zip(weights[0], weights[1], strict=True)]
    return float(np.linalg.norm(sum(gates))), float(np.sqrt(sum(np.linalg.norm(gate) ** 2 for gate in gates)))


def _fed(value: Any, one_hot: torch.Tensor) -> Any:
    """One row of ``one_hot`` for each item of the batch, at all positions, in the place of hidden states."""
    if isinstance(value, torch.Tensor) and value.dim() == 3 and value.shape[0] == len(one_hot):
        return one_hot[:, None, :].expand(-1, value.shape[1], -1) if value.shape[2] == one_hot.shape[1] else value
    return value


@contextlib.contextmanager
def _hooked(modules: list[Any], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
