"""Mixtures of experts in a form that a trace can follow.

transformers runs only the experts that some token was routed to, by Python loops and by lengths that are read off
the data. A trace of that keeps the routing of its example: another text then goes to the wrong experts, or the graph
fails on a length. Here every expert runs on those of its tokens that the graph itself finds, possibly none.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

_Expert = Callable[[Any], Any]


@contextlib.contextmanager
def traceable_experts(model: Any) -> Iterator[None]:
    """While the block runs, every mixture of experts of ``model`` that is known here routes inside the graph."""
    replaced: list[tuple[Any, str]] = []
    for module in model.modules():
        for attribute, function in _BLOCKS.get(type(module).__name__, {}).items():
            setattr(module, attribute, types.MethodType(function, module))
            replaced.append((module, attribute))
    try:
        yield
    finally:
        for module, attribute in replaced:
            # The method of the class shows again.
            delattr(module, attribute)


def _routed(states: Any, chosen: Any, weights: Any, experts: list[_Expert]) -> Any:
    """The weighted sum of the experts of each token, [n, d].

    ``states`` [n, d]; ``chosen`` [n, k] has the numbers of each token's experts, ``weights`` [n, k] theirs.
    """
    import torch

    result = torch.zeros_like(states)
    for number, expert in enumerate(experts):
        tokens, places = torch.where(chosen == number)
        share = expert(states[tokens]) * weights[tokens, places, None].to(states.dtype)
        result = result.index_add(0, tokens, share.to(states.dtype))
    return result


def _softmax_block(self: Any, hidden_states: Any) -> Any:
    """Mixtral, Qwen-MoE, OLMoE: softmax over all experts, the k largest, made to sum to 1 where the family does."""
    import torch

    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    logits = self.gate(flat)
    weights, chosen = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float), self.top_k, dim=-1)
    if getattr(self, "norm_topk_prob", True):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    result = _routed(flat, chosen, weights, list(self.experts))
    if hasattr(self, "shared_expert"):
        result = result + torch.sigmoid(self.shared_expert_gate(flat)) * self.shared_expert(flat)
    return result.reshape(hidden_states.shape), logits


def _granite_block(self: Any, layer_input: Any) -> Any:
    """Granite-MoE: the k largest logits, softmax over those; the experts' matrices lie stacked."""
    import torch

    flat = layer_input.reshape(-1, layer_input.shape[-1])
    logits = self.router.layer(flat).float()
    top, chosen = torch.topk(logits, self.router.top_k, dim=-1)

    def expert(number: int) -> _Expert:
        def run(states: Any) -> Any:
            gate, up = torch.nn.functional.linear(states, self.input_linear.weight[number]).chunk(2, dim=-1)
            return torch.nn.functional.linear(self.activation(gate) * up, self.output_linear.weight[number])

        return run

    experts = [expert(number) for number in range(self.router.num_experts)]
    result = _routed(flat, chosen, torch.softmax(top, dim=-1), experts)
    return result.reshape(layer_input.shape), logits


def _chosen_experts(self: Any, hidden_states: Any, chosen: Any, weights: Any) -> Any:
    """DeepSeek and GLM-4-MoE, whose gate hands over what it chose."""
    return _routed(hidden_states, chosen, weights, list(self.experts))


_BLOCKS: dict[str, dict[str, Callable[..., Any]]] = {
    "MixtralSparseMoeBlock": {"forward": _softmax_block},
    "Qwen2MoeSparseMoeBlock": {"forward": _softmax_block},
    "Qwen3MoeSparseMoeBlock": {"forward": _softmax_block},
    "OlmoeSparseMoeBlock": {"forward": _softmax_block},
    "GraniteMoeMoE": {"forward": _granite_block},
    "DeepseekV2MoE": {"moe": _chosen_experts},
    "DeepseekV3MoE": {"moe": _chosen_experts},
    "Glm4MoeMoE": {"moe": _chosen_experts},
}
"""transformers' class of a block -> the methods that take another's place. gpt-oss needs none: outside training it
multiplies all experts' matrices at once."""
